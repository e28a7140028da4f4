/* The operations that are no convolution, one item at a time: mostly a row of the result. */
#include <string.h>

#include "internal.h"

static int smaller(int a, int b) { return a < b ? a : b; }

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

/* Mean or maximum over all pixels, of the channels of a slice. */
static void pool_all(const operation *op, int slice, float *out) {
  const int first = slice * SLICE, count = smaller(SLICE, op->in.channels - first);
  const size_t pixels = (size_t)op->in.height * (size_t)op->in.width;
  const float *x = op->x + first;
  double sums[SLICE];
  size_t i;
  int c;
  out += first;
  if (op->choice == CHOICE_MAX) {
    memcpy(out, x, (size_t)count * sizeof *out);
    for (i = 1; i < pixels; i++) {
      x += op->in.channels;
      for (c = 0; c < count; c++) out[c] = x[c] > out[c] ? x[c] : out[c];
    }
    return;
  }
  for (c = 0; c < count; c++) sums[c] = 0;
  for (i = 0; i < pixels; i++, x += op->in.channels)
    for (c = 0; c < count; c++) sums[c] += (double)x[c];
  for (c = 0; c < count; c++) out[c] = (float)(sums[c] / (double)pixels);
}

/* The pixels of x, of so many channels, into the first channels of the pixels of out. */
static void copy_channels(const float *x, int channels, int pixels, float *out, int out_channels) {
  int p;
  for (p = 0; p < pixels; p++, x += channels, out += out_channels) memcpy(out, x, (size_t)channels * sizeof *out);
}

static void fill(float *out, float value, size_t count) {
  while (count--) *out++ = value;
}

static void pad_row(const operation *op, int y, float *out) {
  const size_t channels = (size_t)op->in.channels, row = (size_t)op->in.width * channels;
  const int in_y = y - op->pads[0][0];
  const size_t left = (size_t)op->pads[1][0] * channels;
  if (in_y < 0 || in_y >= op->in.height) {
    fill(out, op->number, (size_t)op->out.width * channels);
    return;
  }
  fill(out, op->number, left);
  memcpy(out + left, op->x + (size_t)in_y * row, row * sizeof *out);
  fill(out + left + row, op->number, (size_t)op->pads[1][1] * channels);
}

/* Where result `at` lies between the pixels of an axis: two of them, and the weight of the second. */
static float between(int at, int factor, int size, int pixels[2]) {
  const int n = 2 * at + 1 - factor, floored = n < 0 ? -1 : n / (2 * factor); /* n is at least 1 - factor */
  pixels[0] = floored < 0 ? 0 : floored;
  pixels[1] = smaller(floored + 1, size - 1);
  return (float)(n - 2 * factor * floored) / (float)(2 * factor);
}

static void resize_row(const operation *op, int y, float *out) {
  const size_t channels = (size_t)op->in.channels, row = (size_t)op->in.width * channels;
  int ys[2] = {y / op->stride[0], 0}, xs[2], x;
  float down = 0, across;
  size_t c;
  if (op->choice == CHOICE_BILINEAR) down = between(y, op->stride[0], op->in.height, ys);
  for (x = 0; x < op->out.width; x++, out += channels) {
    const float *a, *b, *d, *e;
    if (op->choice == CHOICE_NEAREST) {
      memcpy(out, op->x + (size_t)ys[0] * row + (size_t)(x / op->stride[1]) * channels, channels * sizeof *out);
      continue;
    }
    across = between(x, op->stride[1], op->in.width, xs);
    a = op->x + (size_t)ys[0] * row + (size_t)xs[0] * channels;
    b = op->x + (size_t)ys[0] * row + (size_t)xs[1] * channels;
    d = op->x + (size_t)ys[1] * row + (size_t)xs[0] * channels;
    e = op->x + (size_t)ys[1] * row + (size_t)xs[1] * channels;
    for (c = 0; c < channels; c++)
      out[c] = (1 - down) * ((1 - across) * a[c] + across * b[c]) + down * ((1 - across) * d[c] + across * e[c]);
  }
}

/* The second operand has the same shape, or one pixel. */
static void multiply_row(const operation *op, int y, const float *x, float *out) {
  const int channels = op->in.channels, one = op->second.height == 1 && op->second.width == 1;
  const float *other = op->y + (one ? 0 : (size_t)y * (size_t)op->in.width * (size_t)channels);
  int p, c;
  for (p = 0; p < op->in.width; p++, x += channels, out += channels, other += one ? 0 : channels)
    for (c = 0; c < channels; c++) out[c] = x[c] * other[c];
}

static void concat_row(const operation *op, int y, float *out) {
  int i;
  for (i = 0; i < op->all_count; i++) {
    const part *p = &op->all[i];
    copy_channels(p->x + (size_t)y * (size_t)op->out.width * (size_t)p->channels, p->channels, op->out.width, out,
                  op->out.channels);
    out += p->channels;
  }
}

void binwrn_simple_item(const binwrn_model *model, const operation *op, int item, const uint8_t *image,
                        float *logits) {
  const size_t in_row = (size_t)op->in.width * (size_t)op->in.channels;
  const size_t out_row = (size_t)op->out.width * (size_t)op->out.channels;
  const int slices = op->kind == OP_MEAN || op->kind == OP_GLOBAL_POOL || op->kind == OP_IMAGE;
  const float *x = slices ? NULL : op->x + (size_t)(item < op->in.height ? item : 0) * in_row;
  float *result = op->result ? op->result + (slices && op->kind != OP_IMAGE ? 0 : (size_t)item * out_row) : logits;
  size_t i;
  int p;
  switch (op->kind) {
    case OP_IMAGE:
      for (i = 0; i < out_row; i++) result[i] = (float)image[(size_t)item * out_row + i];
      break;
    case OP_AFFINE:
      for (p = 0; p < op->in.width; p++)
        apply_affine(&op->affine, x + (size_t)p * (size_t)op->in.channels,
                     result + (size_t)p * (size_t)op->in.channels, op->in.channels);
      break;
    case OP_AVERAGE_POOL:
    case OP_MAX_POOL: pool_row(op, item); break;
    case OP_PAD_CHANNELS:
      memset(result, 0, out_row * sizeof *result);
      copy_channels(x, op->in.channels, op->in.width, result, op->out.channels);
      break;
    case OP_ADD: {
      const float *y = op->y + (size_t)item * in_row;
      for (i = 0; i < in_row; i++) result[i] = x[i] + y[i];
      break;
    }
    case OP_MEAN:
    case OP_GLOBAL_POOL: pool_all(op, item, result); break;
    case OP_CONCAT: concat_row(op, item, result); break;
    case OP_ELEMENTWISE: model->kernel->apply(op->choice, op->number, x, result, in_row); break;
    case OP_PAD: pad_row(op, item, result); break;
    case OP_PRODUCT: multiply_row(op, item, x, result); break;
    case OP_RESIZE: resize_row(op, item, result); break;
    case OP_CONV:
    case OP_REQUANTIZE:
    case OP_TABLE: break; /* convolve.c, integer_run.c */
  }
}
