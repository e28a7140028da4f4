/* Running a loaded network: which thread works on which item of which operation. */
#include <math.h>

#include "internal.h"

static int smaller(int a, int b) { return a < b ? a : b; }

/* Whether the values that an item of any operation but a convolution has made are small; not those that are NaN. */
static int is_small(const operation *op, int item, const float *logits) {
  const int is_sliced = op->kind == OP_MEAN || op->kind == OP_GLOBAL_POOL;
  const int row = op->out.width * op->out.channels, first = item * (is_sliced ? SLICE : row);
  const float *values = (op->kind == OP_MEAN ? logits : op->result) + first;
  const int count = is_sliced ? smaller(SLICE, op->out.channels - first) : row;
  int large = 0, i;
  for (i = 0; i < count; i++) large |= !(fabsf(values[i]) <= (float)MAX_VALUE); /* no branch: vectors can do it */
  return !large;
}

void binwrn_work(void *context, const job *job, int thread) {
  const binwrn_model *model = context;
  const binwrn_description *d = &model->description;
  const size_t image_bytes = (size_t)d->height * (size_t)d->width * (size_t)d->channels;
  unsigned char *scratch = model->scratch + (size_t)thread * model->scratch_size;
  const uint64_t operations = (uint64_t)model->operation_count;
  for (;;) {
    int item;
    const uint64_t step = binwrn_pool_step(model->pool, &item);
    const uint64_t number = (step + MAX_STEPS - job->first_step) % MAX_STEPS;
    const size_t image = (size_t)(number / operations);
    const operation *op = &model->operations[number % operations];
    if (number >= job->steps) return;
    if (item >= op->items) {
      binwrn_pool_wait(model->pool, step);
    } else if (binwrn_pool_take(model->pool, step, item)) {
      float *logits = job->logits + image * (size_t)d->classes;
      int small = 1;
      if (model->integer)
        binwrn_integer_item(op, item, job->images + image * image_bytes, logits);
      else if (op->kind == OP_CONV)
        small = binwrn_convolve(model, op, item, scratch);
      else
        binwrn_simple_item(model, op, item, job->images + image * image_bytes, logits);
      if (model->guarded && !(small && (op->kind == OP_CONV || is_small(op, item, logits))))
        __atomic_store_n(job->exceeded, 1, __ATOMIC_RELAXED);
      binwrn_pool_done(model->pool, step, op->items);
    }
  }
}

binwrn_error binwrn_run(binwrn_model *model, const uint8_t *images, size_t count, float *logits) {
  int exceeded = 0;
  if (!model || ((!images || !logits) && count)) return BINWRN_ERROR_ARGUMENT;
  if (!count) return BINWRN_OK;
  if (count > (MAX_STEPS - 1) / (uint64_t)model->operation_count) return BINWRN_ERROR_ARGUMENT;
  binwrn_pool_run(model->pool, images, logits, (uint64_t)count * (uint64_t)model->operation_count, &exceeded);
  return exceeded ? BINWRN_ERROR_RANGE : BINWRN_OK;
}
