/* Threads that wait between runs, and hand each other the items of one step after the other. */
#ifdef __linux__
#define _GNU_SOURCE /* sched_getcpu and the affinity of one thread */
#include <sched.h>
#else
#define _POSIX_C_SOURCE 200809L
#endif

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "internal.h"

/* Steps take about 0.1 to 1 ms: so long it pays to wait awake, where the threads have cores. */
#define SPINS 4000

struct pool {
  binwrn_work_function *work;
  void *context; /* of work */
  pthread_mutex_t run; /* one run at a time */
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  job job;         /* under mutex: the current run, or the last one */
  int stop;        /* under mutex */
  uint64_t ticket; /* atomic: step * MAX_ITEMS + next item */
  int done;        /* atomic: items of the step that are finished */
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

uint64_t binwrn_pool_step(const struct pool *pool, int *item) {
  const uint64_t ticket = __atomic_load_n(&pool->ticket, __ATOMIC_ACQUIRE);
  *item = (int)(ticket % MAX_ITEMS);
  return ticket / MAX_ITEMS;
}

int binwrn_pool_take(struct pool *pool, uint64_t step, int item) {
  uint64_t ticket = step * MAX_ITEMS + (uint64_t)item;
  return __atomic_compare_exchange_n(&pool->ticket, &ticket, ticket + 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

void binwrn_pool_done(struct pool *pool, uint64_t step, int items) {
  if (__atomic_add_fetch(&pool->done, 1, __ATOMIC_ACQ_REL) < items) return;
  __atomic_store_n(&pool->done, 0, __ATOMIC_RELAXED); /* nobody counts until the next step is open */
  if (pool->threads > 1) pthread_mutex_lock(&pool->mutex);
  __atomic_store_n(&pool->ticket, (step + 1) % MAX_STEPS * MAX_ITEMS, __ATOMIC_RELEASE);
  if (pool->threads > 1) {
    pthread_cond_broadcast(&pool->changed);
    pthread_mutex_unlock(&pool->mutex);
  }
}

void binwrn_pool_wait(struct pool *pool, uint64_t step) {
  int i, item;
  for (i = 0; i < SPINS; i++) {
    if (binwrn_pool_step(pool, &item) != step) return;
    pause_briefly();
  }
  pthread_mutex_lock(&pool->mutex);
  while (binwrn_pool_step(pool, &item) == step) pthread_cond_wait(&pool->changed, &pool->mutex);
  pthread_mutex_unlock(&pool->mutex);
}

/* The processor that this thread is on; -1 where the system does not say. */
static int this_processor(void) {
#ifdef __linux__
  return sched_getcpu();
#else
  return -1;
#endif
}

/* Leaves a processor. Linux may wake a worker on the processor of the thread that calls, and leave both there for
 * many runs although another one is idle: two threads are then no faster than one. So a worker that finds itself
 * there moves, and may be moved anywhere again. */
static void leave(int processor) {
#ifdef __linux__
  cpu_set_t allowed, others;
  if (processor < 0 || processor >= CPU_SETSIZE || sched_getcpu() != processor) return;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < 2) return;
  others = allowed;
  CPU_CLR(processor, &others);
  if (sched_setaffinity(0, sizeof others, &others) == 0) sched_setaffinity(0, sizeof allowed, &allowed);
#else
  (void)processor;
#endif
}

static void *run_worker(void *argument) {
  struct worker *worker = argument;
  struct pool *pool = worker->pool;
  uint64_t seen = 0; /* the run that this thread has worked on */
  for (;;) {
    job job;
    pthread_mutex_lock(&pool->mutex);
    while (pool->job.number == seen && !pool->stop) pthread_cond_wait(&pool->changed, &pool->mutex);
    if (pool->stop) {
      pthread_mutex_unlock(&pool->mutex);
      return NULL;
    }
    job = pool->job; /* a copy: the next run may begin before this thread has seen the end of this one */
    pthread_mutex_unlock(&pool->mutex);
    seen = job.number;
    leave(job.processor);
    pool->work(pool->context, &job, worker->number);
  }
}

/* Signals are for the threads of the program. */
static int start_thread(struct worker *worker) {
  sigset_t all, before;
  int result;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  result = pthread_create(&worker->thread, NULL, run_worker, worker);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return result;
}

struct pool *binwrn_pool_new(binwrn_work_function *work, void *context, int threads) {
  struct pool *pool = calloc(1, sizeof *pool);
  if (!pool) return NULL;
#ifdef BINWRN_FIRST_STEP /* for a test of what happens after MAX_STEPS */
  pool->job.first_step = BINWRN_FIRST_STEP;
  pool->ticket = pool->job.first_step * MAX_ITEMS;
#endif
  pool->work = work;
  pool->context = context;
  pool->threads = threads;
  pool->workers = calloc((size_t)threads, sizeof *pool->workers);
  if (!pool->workers || pthread_mutex_init(&pool->run, NULL) != 0 ||
      pthread_mutex_init(&pool->mutex, NULL) != 0 || pthread_cond_init(&pool->changed, NULL) != 0) {
    free(pool->workers);
    free(pool);
    return NULL;
  }
  for (; pool->started < threads - 1; pool->started++) {
    struct worker *worker = &pool->workers[pool->started];
    worker->pool = pool;
    worker->number = pool->started + 1;
    if (start_thread(worker) != 0) {
      binwrn_pool_free(pool);
      return NULL;
    }
  }
  return pool;
}

/* The caller is thread 0. When it sees the end of the last step, all items are finished; a worker that is late
 * finds no item of this run any more, and never takes one of another run. */
void binwrn_pool_run(struct pool *pool, const uint8_t *images, float *logits, uint64_t steps, int *exceeded) {
  job job;
  pthread_mutex_lock(&pool->run);
  pthread_mutex_lock(&pool->mutex);
  pool->job.images = images;
  pool->job.logits = logits;
  pool->job.exceeded = exceeded;
  pool->job.first_step = (pool->job.first_step + pool->job.steps) % MAX_STEPS;
  pool->job.steps = steps;
  pool->job.processor = this_processor();
  pool->job.number++;
  job = pool->job;
  pthread_cond_broadcast(&pool->changed);
  pthread_mutex_unlock(&pool->mutex);
  pool->work(pool->context, &job, 0);
  pthread_mutex_unlock(&pool->run);
}

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
