/* Running a loaded network: which thread works on which item of which operation. */
#include <math.h>

#include "internal.h"

static int smaller(int a, int b) { return a < b ? a : b; }

static int is_sliced(const operation *op) { return op->kind == OP_MEAN || op->kind == OP_GLOBAL_POOL; }

/* Whether the values that an item has made are small; not those that are NaN. */
static int is_small(const binwrn_model *model, const operation *op, int item, const float *logits) {
  const float *values = op->kind == OP_MEAN ? logits : op->result;
  int rows[2] = {item, item + 1}, columns[2] = {0, op->out.width}, channels[2] = {0, op->out.channels}, y, x, c;
  if (is_sliced(op)) {
    rows[0] = 0, rows[1] = columns[1] = 1;
    channels[0] = item * SLICE, channels[1] = smaller(item * SLICE + SLICE, op->out.channels);
  }
  if (op->kind == OP_CONV) binwrn_conv_area(model, op, item, rows, columns, channels);
  for (y = rows[0]; y < rows[1]; y++)
    for (x = columns[0]; x < columns[1]; x++) {
      const float *pixel = values + ((size_t)y * (size_t)op->out.width + (size_t)x) * (size_t)op->out.channels;
      for (c = channels[0]; c < channels[1]; c++)
        if (!(fabsf(pixel[c]) <= (float)MAX_VALUE)) return 0;
    }
  return 1;
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
      if (op->kind == OP_CONV)
        binwrn_convolve(model, op, item, scratch);
      else
        binwrn_simple_item(model, op, item, job->images + image * image_bytes,
                           job->logits + image * (size_t)d->classes);
      if (model->guarded && !is_small(model, op, item, job->logits + image * (size_t)d->classes))
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
