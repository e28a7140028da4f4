/* In place of ../native/pool.c where there are no threads: the caller works alone. */
#include <stdlib.h>

#include "internal.h"

struct pool {
  binwrn_work_function *work;
  void *context; /* of work */
  uint64_t step, number;
  int item, done;
};

uint64_t binwrn_pool_step(const struct pool *pool, int *item) {
  *item = pool->item;
  return pool->step;
}

int binwrn_pool_take(struct pool *pool, uint64_t step, int item) {
  (void)step, (void)item; /* nobody else takes any */
  pool->item++;
  return 1;
}

void binwrn_pool_done(struct pool *pool, uint64_t step, int items) {
  if (++pool->done < items) return;
  pool->done = pool->item = 0;
  pool->step = (step + 1) % MAX_STEPS;
}

void binwrn_pool_wait(struct pool *pool, uint64_t step) { (void)pool, (void)step; }

struct pool *binwrn_pool_new(binwrn_work_function *work, void *context, int threads) {
  struct pool *pool = threads == 1 ? calloc(1, sizeof *pool) : NULL;
  if (pool) pool->work = work, pool->context = context;
  return pool;
}

void binwrn_pool_run(struct pool *pool, const uint8_t *images, float *logits, uint64_t steps, int *exceeded) {
  job job = {images, logits, pool->step, steps, ++pool->number, exceeded, -1};
  pool->work(pool->context, &job, 0);
}

void binwrn_pool_free(struct pool *pool) { free(pool); }
