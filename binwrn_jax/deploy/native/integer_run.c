/* The operations of an integer network, one item at a time: mostly a row of the result. All values are int32 without
 * their zero points, in the place of floats; every result is exact, so that all processors agree to the last bit. */
#include <string.h>

#include "internal.h"

static int smaller(int a, int b) { return a < b ? a : b; }
static int larger(int a, int b) { return a > b ? a : b; }

/* floor((t + 2^(r-1)) / 2^r), without the shift of a negative number that C leaves open. */
static int64_t shift_right(int64_t t, int r) {
  if (!r) return t;
  t += INT64_C(1) << (r - 1);
  return t >= 0 ? t >> r : -((-t + (INT64_C(1) << r) - 1) >> r);
}

/* floor((2 t + n) / (2 n)) */
static int64_t divide(int64_t t, int64_t n) {
  const int64_t a = 2 * t + n, b = 2 * n;
  return a >= 0 ? a / b : -((-a + b - 1) / b);
}

static int32_t clamped(const integer_fields *f, int64_t t) {
  const int64_t q = shift_right(t, f->shift);
  return (int32_t)(q < f->low ? f->low : q > f->high ? f->high : q);
}

static const int32_t *ints(const float *values) { return (const int32_t *)(const void *)values; }

/* Sums of one pixel of the result, of all its channels. */
static void convolve_pixel(const operation *op, int y, int x, int32_t *out) {
  const conv_plan *plan = &op->conv;
  const int8_t *weights = op->integers.weights;
  int g, i, j, c, o;
  memset(out, 0, (size_t)op->out.channels * sizeof *out);
  for (g = 0; g < plan->groups; g++, out += plan->outputs)
    for (i = 0; i < op->window[0]; i++)
      for (j = 0; j < op->window[1]; j++, weights += plan->inputs * plan->outputs) {
        const int in_y = y * op->stride[0] - op->pads[0][0] + i * op->dilation[0];
        const int in_x = x * op->stride[1] - op->pads[1][0] + j * op->dilation[1];
        const int8_t *w = weights;
        const int32_t *in;
        if (in_y < 0 || in_y >= op->in.height || in_x < 0 || in_x >= op->in.width) continue;
        in = ints(op->x) + ((size_t)in_y * (size_t)op->in.width + (size_t)in_x) * (size_t)op->in.channels;
        for (c = 0, in += g * plan->inputs; c < plan->inputs; c++, w += plan->outputs)
          for (o = 0; in[c] && o < plan->outputs; o++) out[o] += in[c] * w[o];
      }
}

static void pool_pixel(const operation *op, int y, int x, int32_t *out) {
  const int top = y * op->stride[0] - op->pads[0][0], left = x * op->stride[1] - op->pads[1][0];
  const int y0 = larger(top, 0), y1 = smaller(top + op->window[0], op->in.height);
  const int x0 = larger(left, 0), x1 = smaller(left + op->window[1], op->in.width);
  const int channels = op->in.channels;
  int i, j, c;
  for (c = 0; c < channels; c++) {
    int64_t sum = 0;
    int32_t most = INT32_MIN;
    for (i = y0; i < y1; i++)
      for (j = x0; j < x1; j++) {
        const int32_t q = ints(op->x)[((size_t)i * (size_t)op->in.width + (size_t)j) * (size_t)channels + (size_t)c];
        sum += q;
        most = larger(most, q);
      }
    out[c] = op->kind == OP_MAX_POOL ? most : (int32_t)divide(sum, (int64_t)(y1 - y0) * (x1 - x0));
  }
}

/* Mean, maximum or sum over all pixels, of the channels of a slice; sums become logits. */
static void pool_all(const operation *op, int slice, int32_t *out, float *logits) {
  const int first = slice * SLICE, count = smaller(SLICE, op->in.channels - first);
  const size_t pixels = (size_t)op->in.height * (size_t)op->in.width;
  size_t i;
  int c;
  for (c = first; c < first + count; c++) {
    const int32_t *x = ints(op->x) + c;
    int64_t sum = 0;
    int32_t most = INT32_MIN;
    for (i = 0; i < pixels; i++, x += op->in.channels) {
      sum += *x;
      most = larger(most, *x);
    }
    if (op->kind == OP_MEAN)
      logits[c] = (float)((double)sum * op->integers.scale);
    else
      out[c] = op->choice == CHOICE_MAX ? most : (int32_t)divide(sum, (int64_t)pixels);
  }
}

/* Where result `at` lies between the pixels of an axis; returns the weight of the second, in steps of 1 / (2 factor). */
static int between(int at, int factor, int size, int pixels[2]) {
  const int n = 2 * at + 1 - factor, floored = n < 0 ? -1 : n / (2 * factor); /* n is at least 1 - factor */
  pixels[0] = larger(floored, 0);
  pixels[1] = smaller(floored + 1, size - 1);
  return n - 2 * factor * floored;
}

static void resize_pixel(const operation *op, int y, int x, int32_t *out) {
  const size_t channels = (size_t)op->in.channels, row = (size_t)op->in.width * channels;
  const int64_t down = 2 * op->stride[0], across = 2 * op->stride[1];
  int ys[2], xs[2], i, j;
  int64_t wy, wx;
  size_t c;
  if (op->choice == CHOICE_NEAREST) {
    memcpy(out, ints(op->x) + (size_t)(y / op->stride[0]) * row + (size_t)(x / op->stride[1]) * channels,
           channels * sizeof *out);
    return;
  }
  wy = between(y, op->stride[0], op->in.height, ys);
  wx = between(x, op->stride[1], op->in.width, xs);
  for (c = 0; c < channels; c++) {
    int64_t t = 0;
    for (i = 0; i < 2; i++)
      for (j = 0; j < 2; j++)
        t += ints(op->x)[(size_t)ys[i] * row + (size_t)xs[j] * channels + c] * (i ? wy : down - wy) * (j ? wx : across - wx);
    out[c] = (int32_t)divide(t, down * across);
  }
}

static void pad_pixel(const operation *op, int y, int x, int32_t *out) {
  const int in_y = y - op->pads[0][0], in_x = x - op->pads[1][0], channels = op->in.channels;
  int c;
  if (in_y < 0 || in_y >= op->in.height || in_x < 0 || in_x >= op->in.width)
    for (c = 0; c < channels; c++) out[c] = op->integers.low;
  else
    memcpy(out, ints(op->x) + ((size_t)in_y * (size_t)op->in.width + (size_t)in_x) * (size_t)channels,
           (size_t)channels * sizeof *out);
}

static void concat_pixel(const operation *op, size_t pixel, int32_t *out) {
  int i;
  for (i = 0; i < op->all_count; out += op->all[i].channels, i++)
    memcpy(out, ints(op->all[i].x) + pixel * (size_t)op->all[i].channels, (size_t)op->all[i].channels * sizeof *out);
}

/* Operations whose result is of each number by itself, of one pixel. */
static void map_pixel(const operation *op, size_t pixel, int32_t *out) {
  const integer_fields *f = &op->integers;
  const int channels = op->in.channels, one = op->second.height == 1 && op->second.width == 1;
  const int32_t *x = ints(op->x) + pixel * (size_t)channels;
  const int32_t *y = op->y ? ints(op->y) + (op->kind == OP_PRODUCT && one ? 0 : pixel * (size_t)channels) : NULL;
  int c;
  for (c = 0; c < channels; c++)
    switch (op->kind) {
      case OP_REQUANTIZE: out[c] = clamped(f, (int64_t)x[c] * f->multiplier[c] + f->bias[c]); break;
      case OP_ADD: out[c] = clamped(f, x[c] * f->multipliers[0] + y[c] * f->multipliers[1]); break;
      case OP_PRODUCT: out[c] = clamped(f, (int64_t)x[c] * y[c] * f->multipliers[0]); break;
      default: out[c] = f->table[x[c] - f->zero_in]; break;
    }
}

void binwrn_integer_item(const operation *op, int item, const uint8_t *image, float *logits) {
  const size_t width = (size_t)op->out.width, channels = (size_t)op->out.channels;
  int32_t *out = (int32_t *)(void *)op->result;
  size_t i;
  int x;
  if (op->kind == OP_MEAN || op->kind == OP_GLOBAL_POOL) {
    pool_all(op, item, out, logits);
    return;
  }
  out += (size_t)item * width * channels;
  if (op->kind == OP_IMAGE)
    for (i = 0; i < width * channels; i++) out[i] = image[(size_t)item * width * channels + i];
  for (x = 0; op->kind != OP_IMAGE && x < op->out.width; x++, out += channels) {
    const size_t pixel = (size_t)item * width + (size_t)x;
    switch (op->kind) {
      case OP_CONV: convolve_pixel(op, item, x, out); break;
      case OP_AVERAGE_POOL:
      case OP_MAX_POOL: pool_pixel(op, item, x, out); break;
      case OP_RESIZE: resize_pixel(op, item, x, out); break;
      case OP_PAD: pad_pixel(op, item, x, out); break;
      case OP_CONCAT: concat_pixel(op, pixel, out); break;
      case OP_PAD_CHANNELS:
        memset(out, 0, channels * sizeof *out);
        memcpy(out, ints(op->x) + pixel * (size_t)op->in.channels, (size_t)op->in.channels * sizeof *out);
        break;
      default: map_pixel(op, pixel, out); break;
    }
  }
}
