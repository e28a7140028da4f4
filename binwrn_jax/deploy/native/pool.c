/* Threads that wait between runs, and a barrier that spins for a moment before it sleeps. */
#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <stdlib.h>

#include "internal.h"

/* Operations take about 0.1 to 1 ms: so long it pays to wait awake, where the threads have cores. */
#define SPINS 4000

struct pool {
  binwrn_model *model;
  pthread_mutex_t run; /* one run at a time */
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  unsigned job;        /* under mutex: number of the current run */
  int stop;            /* under mutex */
  unsigned generation; /* atomic: barriers passed */
  int arrived;         /* atomic: threads at the barrier */
  int next;            /* atomic: item */
  int threads;
  struct worker {
    struct pool *pool;
    int number;
    pthread_t thread;
  } *workers; /* threads - 1 */
  int started;
};

static void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

int binwrn_pool_next(struct pool *pool) { return __atomic_fetch_add(&pool->next, 1, __ATOMIC_RELAXED); }

void binwrn_pool_barrier(struct pool *pool) {
  unsigned generation = __atomic_load_n(&pool->generation, __ATOMIC_ACQUIRE);
  int i;
  if (__atomic_add_fetch(&pool->arrived, 1, __ATOMIC_ACQ_REL) == pool->threads) {
    __atomic_store_n(&pool->arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&pool->next, 0, __ATOMIC_RELAXED);
    if (pool->threads == 1) return;
    pthread_mutex_lock(&pool->mutex);
    __atomic_store_n(&pool->generation, generation + 1, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&pool->changed);
    pthread_mutex_unlock(&pool->mutex);
    return;
  }
  for (i = 0; i < SPINS; i++) {
    if (__atomic_load_n(&pool->generation, __ATOMIC_ACQUIRE) != generation) return;
    pause_briefly();
  }
  pthread_mutex_lock(&pool->mutex);
  while (__atomic_load_n(&pool->generation, __ATOMIC_ACQUIRE) == generation)
    pthread_cond_wait(&pool->changed, &pool->mutex);
  pthread_mutex_unlock(&pool->mutex);
}

static void *work(void *argument) {
  struct worker *worker = argument;
  struct pool *pool = worker->pool;
  unsigned done = 0;
  for (;;) {
    pthread_mutex_lock(&pool->mutex);
    while (pool->job == done && !pool->stop) pthread_cond_wait(&pool->changed, &pool->mutex);
    done = pool->job;
    if (pool->stop) {
      pthread_mutex_unlock(&pool->mutex);
      return NULL;
    }
    pthread_mutex_unlock(&pool->mutex);
    binwrn_work(pool->model, worker->number);
  }
}

struct pool *binwrn_pool_new(binwrn_model *model, int threads) {
  struct pool *pool = calloc(1, sizeof *pool);
  if (!pool) return NULL;
  pool->model = model;
  pool->threads = threads;
  pool->workers = calloc((size_t)threads, sizeof *pool->workers);
  if (!pool->workers || pthread_mutex_init(&pool->run, NULL) != 0) {
    free(pool->workers);
    free(pool);
    return NULL;
  }
  if (pthread_mutex_init(&pool->mutex, NULL) != 0 || pthread_cond_init(&pool->changed, NULL) != 0) {
    free(pool->workers);
    free(pool);
    return NULL;
  }
  for (; pool->started < threads - 1; pool->started++) {
    struct worker *worker = &pool->workers[pool->started];
    worker->pool = pool;
    worker->number = pool->started + 1;
    if (pthread_create(&worker->thread, NULL, work, worker) != 0) {
      binwrn_pool_free(pool);
      return NULL;
    }
  }
  return pool;
}

/* The caller is thread 0; every thread leaves binwrn_work through a barrier, so that none is still at work
 * when this returns. */
void binwrn_pool_run(struct pool *pool) {
  if (pool->threads > 1) {
    pthread_mutex_lock(&pool->mutex);
    pool->job++;
    pthread_cond_broadcast(&pool->changed);
    pthread_mutex_unlock(&pool->mutex);
  }
  binwrn_work(pool->model, 0);
}

void binwrn_pool_lock(struct pool *pool) { pthread_mutex_lock(&pool->run); }
void binwrn_pool_unlock(struct pool *pool) { pthread_mutex_unlock(&pool->run); }

void binwrn_pool_free(struct pool *pool) {
  int i;
  if (!pool) return;
  pthread_mutex_lock(&pool->mutex);
  pool->stop = 1;
  pthread_cond_broadcast(&pool->changed);
  pthread_mutex_unlock(&pool->mutex);
  for (i = 0; i < pool->started; i++) pthread_join(pool->workers[i].thread, NULL);
  pthread_cond_destroy(&pool->changed);
  pthread_mutex_destroy(&pool->mutex);
  pthread_mutex_destroy(&pool->run);
  free(pool->workers);
  free(pool);
}
