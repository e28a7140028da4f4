/* Running a loaded network.
 *
 * A convolution is cut into tiles of PIXELS x tile_rows output pixels, and its input channels into chunks of
 * `slots` groups. For each tile and chunk, the signed sums of the groups are tabulated once for each *input*
 * pixel that the tile needs; all taps of the window and all output channels look up there. The sums of the
 * tile stay in the scratch memory of the thread until all chunks are done. */
#include <math.h>
#include <string.h>

#include "internal.h"

static int smaller(int a, int b) { return a < b ? a : b; }

int binwrn_plan_conv(operation *op, const kernel *k, int threads) {
  conv_plan *plan = &op->conv;
  const size_t pixel = (size_t)k->slots * (size_t)k->table; /* floats of tables of an input pixel */
  uint64_t row, used;
  int ty, tx;
  plan->tap_count = op->window[0] * op->window[1];
  plan->groups = (op->in.channels + k->group - 1) / k->group;
  plan->chunks = (plan->groups + k->slots - 1) / k->slots;
  plan->blocks = (op->out.channels + k->lanes - 1) / k->lanes;
  plan->in_columns = (PIXELS - 1) * op->stride[1] + op->window[1];
  plan->phase = (plan->in_columns + op->stride[1] - 1) / op->stride[1];
  row = (uint64_t)op->stride[1] * (uint64_t)plan->phase * pixel;
  used = (uint64_t)plan->in_columns * (uint64_t)(smaller(plan->groups, k->slots) * k->table) * sizeof(float);
  plan->tile_rows = smaller(MAX_TILE_ROWS, op->out.height);
  while (plan->tile_rows > 1 &&
         used * (uint64_t)((plan->tile_rows - 1) * op->stride[0] + op->window[0]) > TABLE_BYTES)
    plan->tile_rows--;
  plan->in_rows = (plan->tile_rows - 1) * op->stride[0] + op->window[0];
  if (row * (uint64_t)plan->in_rows > UINT32_MAX / sizeof(float)) return 0;
  plan->row_floats = (size_t)row;
  plan->tiles_y = (op->out.height + plan->tile_rows - 1) / plan->tile_rows;
  plan->tiles_x = (op->out.width + PIXELS - 1) / PIXELS;
  /* Each part makes the tables anew: no more of them than the threads need. */
  tx = plan->tiles_y * plan->tiles_x;
  plan->parts = threads == 1 ? 1 : smaller(plan->blocks, (2 * threads + tx - 1) / tx);
  op->items = tx * plan->parts; /* below MAX_ITEMS: at most 4222 x 528 tiles, parts only of few tiles */
  if (plan->taps) {
    for (ty = 0; ty < op->window[0]; ty++)
      for (tx = 0; tx < op->window[1]; tx++)
        plan->taps[ty * op->window[1] + tx] =
            (uint32_t)((size_t)ty * plan->row_floats +
                       (size_t)(tx % op->stride[1] * plan->phase + tx / op->stride[1]) * pixel);
  }
  return 1;
}

static void make_tables(const binwrn_model *model, const operation *op, int y, int x, int chunk, int slots,
                        float *tables) {
  const kernel *k = model->kernel;
  const conv_plan *plan = &op->conv;
  const size_t pixel = (size_t)k->slots * (size_t)k->table, made = (size_t)slots * (size_t)k->table;
  const int first = chunk * k->slots * k->group;
  const int n = smaller(op->in.channels - first, slots * k->group);
  affine before = op->affine;
  int r, c;
  if (before.scale) before.scale += first, before.offset += first;
  for (r = 0; r < plan->in_rows; r++, tables += plan->row_floats) {
    const int in_y = y * op->stride[0] - op->pads[0][0] + r;
    int phase = 0, column = 0;
    for (c = 0; c < plan->in_columns; c++) {
      const int in_x = x * op->stride[1] - op->pads[1][0] + c;
      float *table = tables + (size_t)(phase * plan->phase + column) * pixel;
      if (in_y < 0 || in_y >= op->in.height || in_x < 0 || in_x >= op->in.width) {
        memset(table, 0, made * sizeof *table);
      } else {
        const float *input =
            op->x + ((size_t)in_y * (size_t)op->in.width + (size_t)in_x) * (size_t)op->in.channels + first;
        k->tables(input, n, &before, slots, table);
      }
      if (++phase == op->stride[1]) phase = 0, column++;
    }
  }
}

static void convolve(const binwrn_model *model, const operation *op, int item, unsigned char *scratch) {
  const kernel *k = model->kernel;
  const conv_plan *plan = &op->conv;
  float *tables = (float *)(void *)scratch, *sums = tables + model->table_floats;
  const int tile = item / plan->parts, part = item % plan->parts;
  const int y = tile / plan->tiles_x * plan->tile_rows, x = tile % plan->tiles_x * PIXELS;
  const int rows = smaller(plan->tile_rows, op->out.height - y), columns = smaller(PIXELS, op->out.width - x);
  const int first = (int)((int64_t)plan->blocks * part / plan->parts);
  const int last = (int)((int64_t)plan->blocks * (part + 1) / plan->parts);
  const size_t tile_sums = (size_t)(PIXELS * k->lanes), chunk_words = (size_t)plan->tap_count * (size_t)k->lanes;
  int chunk, block, r, p, lane;
  memset(sums, 0, (size_t)(last - first) * (size_t)rows * tile_sums * sizeof *sums);
  for (chunk = 0; chunk < plan->chunks; chunk++) {
    const int slots = smaller(k->slots, plan->groups - chunk * k->slots);
    make_tables(model, op, y, x, chunk, slots, tables);
    for (block = first; block < last; block++) {
      const uint32_t *words =
          plan->words + ((size_t)block * (size_t)plan->chunks + (size_t)chunk) * chunk_words;
      for (r = 0; r < rows; r++)
        k->accumulate(sums + ((size_t)(block - first) * (size_t)rows + (size_t)r) * tile_sums, words,
                      tables + (size_t)(r * op->stride[0]) * plan->row_floats, plan->taps, plan->tap_count,
                      slots);
    }
  }
  for (block = first; block < last; block++) {
    const int lanes = smaller(k->lanes, op->out.channels - block * k->lanes);
    for (r = 0; r < rows; r++)
      for (p = 0; p < columns; p++) {
        const float *sum =
            sums + ((size_t)(block - first) * (size_t)rows + (size_t)r) * tile_sums + (size_t)(p * k->lanes);
        const size_t at = ((size_t)(y + r) * (size_t)op->out.width + (size_t)(x + p)) *
                              (size_t)op->out.channels + (size_t)block * (size_t)k->lanes;
        if (op->y)
          for (lane = 0; lane < lanes; lane++) op->result[at + (size_t)lane] = sum[lane] + op->y[at + (size_t)lane];
        else
          memcpy(op->result + at, sum, (size_t)lanes * sizeof *sum);
      }
  }
}

/* One row of the result. */
static void pool_row(const operation *op, int y) {
  const int channels = op->in.channels;
  const int top = y * op->stride[0] - op->pads[0][0];
  const int y0 = top < 0 ? 0 : top, y1 = smaller(top + op->window[0], op->in.height);
  float *out = op->result + (size_t)y * (size_t)op->out.width * (size_t)channels;
  int x, c, i, j;
  for (x = 0; x < op->out.width; x++, out += channels) {
    const int left = x * op->stride[1] - op->pads[1][0];
    const int x0 = left < 0 ? 0 : left, x1 = smaller(left + op->window[1], op->in.width);
    const float count = (float)((y1 - y0) * (x1 - x0));
    for (i = y0; i < y1; i++)
      for (j = x0; j < x1; j++) {
        const float *in = op->x + ((size_t)i * (size_t)op->in.width + (size_t)j) * (size_t)channels;
        if (i == y0 && j == x0)
          memcpy(out, in, (size_t)channels * sizeof *out);
        else if (op->kind == OP_AVERAGE_POOL)
          for (c = 0; c < channels; c++) out[c] += in[c];
        else
          for (c = 0; c < channels; c++) out[c] = in[c] > out[c] ? in[c] : out[c];
      }
    if (op->kind == OP_AVERAGE_POOL)
      for (c = 0; c < channels; c++) out[c] /= count;
  }
}

static void run_item(const binwrn_model *model, const operation *op, int item, unsigned char *scratch,
                     const uint8_t *image, float *logits) {
  const size_t in_row = (size_t)op->in.width * (size_t)op->in.channels;
  const size_t out_row = (size_t)op->out.width * (size_t)op->out.channels;
  const float *x = op->x ? op->x + (size_t)item * in_row : NULL;
  float *result = op->result ? op->result + (size_t)item * out_row : NULL;
  size_t i;
  int p, c;
  switch (op->kind) {
    case OP_IMAGE:
      for (i = 0; i < out_row; i++) result[i] = (float)image[(size_t)item * out_row + i];
      break;
    case OP_AFFINE:
      for (p = 0; p < op->in.width; p++)
        apply_affine(&op->affine, x + (size_t)p * (size_t)op->in.channels,
                     result + (size_t)p * (size_t)op->in.channels, op->in.channels);
      break;
    case OP_CONV:
      convolve(model, op, item, scratch);
      break;
    case OP_AVERAGE_POOL:
    case OP_MAX_POOL:
      pool_row(op, item);
      break;
    case OP_PAD:
      for (p = 0; p < op->in.width; p++) {
        float *pixel = result + (size_t)p * (size_t)op->out.channels;
        memcpy(pixel, x + (size_t)p * (size_t)op->in.channels, (size_t)op->in.channels * sizeof *pixel);
        memset(pixel + op->in.channels, 0, (size_t)(op->out.channels - op->in.channels) * sizeof *pixel);
      }
      break;
    case OP_ADD: {
      const float *y = op->y + (size_t)item * in_row;
      for (i = 0; i < in_row; i++) result[i] = x[i] + y[i];
      break;
    }
    case OP_MEAN: {
      const size_t pixels = (size_t)op->in.height * (size_t)op->in.width;
      for (c = 0; c < op->in.channels; c++) {
        double sum = 0;
        for (i = 0; i < pixels; i++) sum += op->x[i * (size_t)op->in.channels + (size_t)c];
        logits[c] = (float)(sum / (double)pixels);
      }
      break;
    }
  }
}

/* Whether the values that an item has made are small; not those that are NaN. */
static int is_small(const binwrn_model *model, const operation *op, int item, const float *logits) {
  const int channels = op->out.channels;
  const float *values = op->kind == OP_MEAN ? logits : op->result;
  int y = item, bottom = item + 1, left = 0, right = op->out.width, first = 0, last = channels, x, c;
  if (op->kind == OP_MEAN) y = 0, bottom = right = 1;
  if (op->kind == OP_CONV) {
    const conv_plan *plan = &op->conv;
    const int tile = item / plan->parts, part = item % plan->parts, lanes = model->kernel->lanes;
    y = tile / plan->tiles_x * plan->tile_rows, bottom = smaller(y + plan->tile_rows, op->out.height);
    left = tile % plan->tiles_x * PIXELS, right = smaller(left + PIXELS, op->out.width);
    first = (int)((int64_t)plan->blocks * part / plan->parts) * lanes;
    last = smaller((int)((int64_t)plan->blocks * (part + 1) / plan->parts) * lanes, channels);
  }
  for (; y < bottom; y++)
    for (x = left; x < right; x++) {
      const float *pixel = values + ((size_t)y * (size_t)op->out.width + (size_t)x) * (size_t)channels;
      for (c = first; c < last; c++)
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
      run_item(model, op, item, scratch, job->images + image * image_bytes,
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
