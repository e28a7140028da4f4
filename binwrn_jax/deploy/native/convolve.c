/* Convolutions, one item at a time.
 *
 * A convolution is cut into tiles of tile_columns x tile_rows output pixels, and its input channels into chunks of
 * `slots` bundles. For each tile and chunk, the tables of the bundles are made once for each *input* pixel that the
 * tile needs; all taps of the window and all output channels look up there. The sums of the tile stay in the scratch
 * memory of the thread until all chunks are done. Float kernels go the same way: the table of one input is the input.
 *
 * In a 1x1 convolution each input pixel belongs to one output pixel. So its pixels may stand in rows of PIXELS,
 * whatever the image's width; a tile is one row, and several chunks are taken at a time, as if they were taps of a
 * window. */
#include <string.h>

#include "internal.h"

static int smaller(int a, int b) { return a < b ? a : b; }

/* Offsets of the taps into the tables. */
static void place_taps(const operation *op, const summation *s) {
  const conv_plan *plan = &op->conv;
  const size_t pixel = (size_t)s->slots * (size_t)s->table;
  int d, y, x, t = 0;
  for (d = 0; d < plan->depth; d++)
    for (y = 0; y < op->window[0]; y++)
      for (x = 0; x < op->window[1]; x++) {
        const int column = x * op->dilation[1];
        plan->taps[t++] = (uint32_t)((size_t)d * plan->chunk_floats +
                                     (size_t)(y * op->dilation[0]) * plan->row_floats +
                                     (size_t)(column % op->stride[1] * plan->phase) * pixel +
                                     (size_t)(column / op->stride[1]) * (s->interleave ? 1 : pixel));
      }
}

static int is_pointwise(const operation *op) {
  return op->window[0] == 1 && op->window[1] == 1 && op->stride[0] == 1 && op->stride[1] == 1;
}

int binwrn_plan_conv(operation *op, const kernel *k, int threads) {
  conv_plan *plan = &op->conv;
  const summation *s = summation_of(k, plan);
  const size_t pixel = (size_t)s->slots * (size_t)s->table; /* floats of tables of an input pixel */
  uint64_t row, used;
  int tiles, blocks, i;
  for (i = 0; i < 2; i++) plan->covers[i] = (op->window[i] - 1) * op->dilation[i] + 1;
  plan->in = op->in, plan->out = op->out;
  plan->pixels = op->in.height * op->in.width;
  if (is_pointwise(op)) {
    plan->in.width = plan->out.width = PIXELS;
    plan->in.height = plan->out.height = (plan->pixels + PIXELS - 1) / PIXELS;
  }
  plan->bundles = (plan->inputs + s->bundle - 1) / s->bundle;
  plan->chunks = (plan->bundles + s->slots - 1) / s->slots;
  plan->blocks = (plan->outputs + s->lanes - 1) / s->lanes;
  plan->tile_columns = PIXELS;
  if (!s->interleave && plan->out.width % PIXELS && plan->out.width % (PIXELS - 1) == 0) plan->tile_columns--;
  plan->in_columns = (plan->tile_columns - 1) * op->stride[1] + plan->covers[1];
  plan->phase = (plan->in_columns + op->stride[1] - 1) / op->stride[1];
  if (s->interleave) plan->phase = (plan->phase + 3) / 4 * 4; /* whole vectors */
  row = (uint64_t)op->stride[1] * (uint64_t)plan->phase * pixel;
  used = (uint64_t)plan->in_columns * (uint64_t)(smaller(plan->bundles, s->slots) * s->table) * sizeof(float);
  plan->tile_rows = is_pointwise(op) ? 1 : smaller(MAX_TILE_ROWS, op->out.height);
  while (plan->tile_rows > 1 && used * (uint64_t)((plan->tile_rows - 1) * op->stride[0] + plan->covers[0]) > TABLE_BYTES)
    plan->tile_rows--;
  plan->in_rows = (plan->tile_rows - 1) * op->stride[0] + plan->covers[0];
  plan->depth = is_pointwise(op) ? smaller(plan->chunks, (int)(TABLE_BYTES / (row * sizeof(float)))) : 1;
  plan->chunks = (plan->chunks + plan->depth - 1) / plan->depth;
  plan->depth = ((plan->bundles + s->slots - 1) / s->slots + plan->chunks - 1) / plan->chunks; /* evenly */
  plan->tap_count = op->window[0] * op->window[1] * plan->depth;
  if (row * (uint64_t)plan->in_rows * (uint64_t)plan->depth > UINT32_MAX / sizeof(float)) return 0;
  plan->row_floats = (size_t)row;
  plan->chunk_floats = plan->row_floats * (size_t)plan->in_rows;
  plan->tiles_y = (plan->out.height + plan->tile_rows - 1) / plan->tile_rows;
  plan->tiles_x = (plan->out.width + plan->tile_columns - 1) / plan->tile_columns;
  /* Each part makes the tables anew: no more of them than the threads need. */
  tiles = plan->tiles_y * plan->tiles_x;
  blocks = plan->groups * plan->blocks;
  plan->parts = threads == 1 ? 1 : smaller(blocks, (2 * threads + tiles - 1) / tiles);
  op->items = tiles * plan->parts; /* below MAX_ITEMS: at most 4222 x 604 tiles, parts only of few tiles */
  if (plan->taps) place_taps(op, s);
  return 1;
}

void binwrn_conv_scratch(const binwrn_model *model, const operation *op, size_t *tables, size_t *sums) {
  const conv_plan *plan = &op->conv;
  size_t table, sum;
  if (plan->method == METHOD_DEPTHWISE) return;
  table = plan->chunk_floats * (size_t)plan->depth; /* whole cache lines: a pixel's tables are */
  sum = (size_t)plan->blocks * (size_t)plan->tile_rows * (size_t)(PIXELS * summation_of(model->kernel, plan)->lanes);
  if (table > *tables) *tables = table;
  if (sum > *sums) *sums = sum;
}

/* The tables of one row of the input under a tile, whose first pixel is (y, x): a phase at a time, with zeros for the
 * pixels outside the image. */
static void make_row(const summation *s, const operation *op, int y, int x, int first, int n, const affine *before,
                     int slots, float *tables) {
  const conv_plan *plan = &op->conv;
  const size_t pixel = (size_t)s->slots * (size_t)s->table, channels = (size_t)plan->in.channels;
  const int step = op->stride[1], left = plan->pixels - y * plan->in.width; /* pixels from this row on */
  const int width = y < 0 || y >= plan->in.height ? 0 : smaller(plan->in.width, left);
  int phase;
  for (phase = 0; phase < step && phase < plan->covers[1]; phase++, tables += (size_t)plan->phase * pixel) {
    const int count = (plan->in_columns - phase + step - 1) / step, at = x + phase;
    const int begin = at < 0 ? smaller((-at + step - 1) / step, count) : 0;
    const int end = at >= width ? begin : smaller((width - at + step - 1) / step, count);
    const float *inputs = op->x;
    int p;
    if (end > begin) inputs += ((size_t)y * (size_t)plan->in.width + (size_t)(at + begin * step)) * channels + first;
    if (s->interleave) {
      s->interleave(inputs, (size_t)step * channels, begin, end, (size_t)plan->phase, n, before, slots, tables);
      continue;
    }
    for (p = 0; p < count; p++)
      if (p < begin || p >= end) memset(tables + (size_t)p * pixel, 0, (size_t)(slots * s->table) * sizeof *tables);
    if (end > begin)
      s->tables(inputs, (size_t)step * channels, end - begin, n, before, slots, tables + (size_t)begin * pixel);
  }
}

/* The tables of one chunk of a group for a tile; `first` is its first input channel, n there are. */
static void make_tables(const summation *s, const operation *op, int y, int x, int first, int n, int slots,
                        float *tables) {
  const conv_plan *plan = &op->conv;
  affine before = op->affine;
  int r;
  if (before.scale) before.scale += first, before.offset += first;
  for (r = 0; r < plan->in_rows; r++, tables += plan->row_floats)
    if (r % op->stride[0] < plan->covers[0]) /* else the window steps over it, as over some phases */
      make_row(s, op, y * op->stride[0] - op->pads[0][0] + r, x * op->stride[1] - op->pads[1][0], first, n, &before, slots,
               tables);
}

/* Sums of the blocks from `first` to `last` - 1 of one group, for a tile. */
static void sum_group(const summation *s, const operation *op, int group, int first, int last, int y, int x, int rows,
                      float *tables, float *sums) {
  const conv_plan *plan = &op->conv;
  const size_t tile = (size_t)(PIXELS * s->lanes);
  const size_t chunk_weights = (size_t)plan->tap_count * (size_t)(s->lanes * s->words);
  const uint32_t *weights = plan->weights;
  int chunk, block, d, r;
  for (chunk = 0; chunk < plan->chunks; chunk++) {
    const int at = chunk * plan->depth * s->slots; /* bundles before this chunk */
    const int slots = smaller(s->slots, plan->bundles - at);
    const int depth = smaller(plan->depth, (plan->bundles - at + s->slots - 1) / s->slots);
    for (d = 0; d < depth; d++) {
      const int first_input = (at + d * s->slots) * s->bundle;
      make_tables(s, op, y, x, group * plan->inputs + first_input,
                  smaller(plan->inputs - first_input, slots * s->bundle), slots,
                  tables + (size_t)d * plan->chunk_floats);
    }
    for (block = first; block < last; block++) {
      const uint32_t *w =
          weights + (((size_t)group * (size_t)plan->blocks + (size_t)block) * (size_t)plan->chunks + (size_t)chunk) *
                        chunk_weights;
      for (r = 0; r < rows; r++)
        s->accumulate(sums + ((size_t)(block - first) * (size_t)rows + (size_t)r) * tile, plan->tile_columns,
                      chunk == 0, w,
                      tables + (size_t)(r * op->stride[0]) * plan->row_floats, plan->taps,
                      plan->tap_count / plan->depth * depth, slots, (size_t)plan->phase);
    }
  }
}

static int finish_group(const binwrn_model *model, const operation *op, int group, int first, int last, int y, int x,
                        int rows, const float *sums) {
  const kernel *k = model->kernel;
  const conv_plan *plan = &op->conv;
  const int lanes = summation_of(k, plan)->lanes;
  const size_t channels = (size_t)plan->out.channels;
  int block, r, small = 1;
  for (block = first; block < last; block++) {
    const int n = smaller(lanes, plan->outputs - block * lanes), channel = group * plan->outputs + block * lanes;
    affine after = op->after;
    if (after.scale) after.scale += channel, after.offset += channel;
    for (r = 0; r < rows; r++, sums += PIXELS * lanes) {
      const size_t pixel = (size_t)(y + r) * (size_t)plan->out.width + (size_t)x;
      const size_t at = pixel * channels + (size_t)channel;
      int columns = smaller(plan->tile_columns, plan->out.width - x);
      if (is_pointwise(op)) columns = smaller(columns, plan->pixels - (int)pixel);
      small &= k->finish(sums, lanes, columns, n, &after, op->y ? op->y + at : NULL, op->result + at, channels,
                         model->guarded);
    }
  }
  return small;
}

/* The tile and the blocks of an item. */
static void find_item(const conv_plan *plan, int item, int *y, int *x, int *first, int *last) {
  const int tile = item / plan->parts, part = item % plan->parts, blocks = plan->groups * plan->blocks;
  *y = tile / plan->tiles_x * plan->tile_rows;
  *x = tile % plan->tiles_x * plan->tile_columns;
  *first = (int)((int64_t)blocks * part / plan->parts);
  *last = (int)((int64_t)blocks * (part + 1) / plan->parts);
}

int binwrn_convolve(const binwrn_model *model, const operation *op, int item, unsigned char *scratch) {
  const kernel *k = model->kernel;
  const conv_plan *plan = &op->conv;
  float *tables = (float *)(void *)scratch, *sums = tables + model->table_floats;
  int y, x, first, last, rows, block, small = 1;
  if (plan->method == METHOD_DEPTHWISE) return k->depthwise(op, item, model->guarded);
  find_item(plan, item, &y, &x, &first, &last);
  rows = smaller(plan->tile_rows, plan->out.height - y);
  for (block = first; block < last;) {
    const int group = block / plan->blocks, begin = block % plan->blocks;
    const int end = smaller(plan->blocks, begin + last - block);
    sum_group(summation_of(k, plan), op, group, begin, end, y, x, rows, tables, sums);
    small &= finish_group(model, op, group, begin, end, y, x, rows, sums);
    block += end - begin;
  }
  return small;
}
