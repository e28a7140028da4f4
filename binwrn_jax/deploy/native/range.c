/* How large values can become, whatever the image; docs/packed-format.md and docs/packed-format-2.md define it. */
#include <math.h>
#include <stdlib.h>

#include "loader.h"

#define MAX_RANGE 85070591730234615865843651857942052864.0 /* 2^126 */

static float number(const loader *l, const tensor *t, int i) {
  return binwrn_read_float(l->data + t->begin + 4 * (uint64_t)i);
}

/* Of a convolution. */
static void after_conv(const loader *l, const node *n, const double *x, int outputs, double *result) {
  const int inputs = l->values[n->in[0]].shape.channels / n->groups, taps = n->window[0] * n->window[1];
  int o, c, t;
  for (o = 0; o < outputs; o++) {
    const double *seen = x + o / (outputs / n->groups) * inputs;
    const uint64_t row = (uint64_t)o * (uint64_t)(taps * inputs);
    double sum = 0;
    if (n->floats)
      for (t = 0; t < taps; t++)
        for (c = 0; c < inputs; c++)
          sum += fabs((double)binwrn_read_float(n->weights + 4 * (row + (uint64_t)(t * inputs + c)))) * seen[c];
    else if (o % (outputs / n->groups))
      sum = result[o - 1]; /* of the same group */
    else
      for (c = 0; c < inputs; c++) sum += taps * seen[c];
    result[o] = sum;
  }
}

/* The larger magnitude of the limits of an affine; 0 where there is none. */
static double limit_of(const node *n) {
  const double min = n->affine.min > -INFINITY ? fabs((double)n->affine.min) : 0;
  return n->affine.max < INFINITY ? fmax(min, fabs((double)n->affine.max)) : min;
}

/* Of an operation on single numbers; of an affine before it is cut. */
static double after_number(const loader *l, const node *n, double *const *magnitudes, int c) {
  const double x = magnitudes[n->in[0]][c], slope = fabs((double)n->number);
  double m;
  switch (n->kind) {
    case OP_AFFINE:
      m = fabs((double)number(l, n->affine.scale, c)) * x + fabs((double)number(l, n->affine.offset, c));
      return fmax(m, limit_of(n));
    case OP_ADD: return x + magnitudes[n->in[1]][c];
    case OP_PRODUCT: return x * magnitudes[n->in[1]][c];
    case OP_PAD: return fmax(x, slope);
    case OP_ELEMENTWISE:
      if (n->choice == CHOICE_SIGMOID || n->choice == CHOICE_HARD_SIGMOID || n->choice == CHOICE_TANH) return 1;
      return n->choice == CHOICE_LEAKY_RELU ? x * fmax(1, slope) : x;
    default: return x;
  }
}

/* The magnitudes of one result, by channel, from those of its inputs. Returns the largest, or a sum that is
 * divided afterwards. */
static double one_result(const loader *l, const node *n, double *const *magnitudes, double *result) {
  const shape in = l->values[n->in[0]].shape;
  const int channels = l->values[n->out].shape.channels;
  double terms = 1, largest = 0;
  int c = 0, i, k;
  if (n->kind == OP_AVERAGE_POOL) terms = (double)n->window[0] * n->window[1];
  if (n->kind == OP_MEAN || (n->kind == OP_GLOBAL_POOL && n->choice == CHOICE_AVERAGE))
    terms = (double)in.height * in.width;
  if (n->kind == OP_CONV) {
    after_conv(l, n, magnitudes[n->in[0]], channels, result);
  } else if (n->kind == OP_CONCAT) {
    for (i = 0; i < n->in_count; i++)
      for (k = 0; k < l->values[n->in[i]].shape.channels; k++) result[c++] = magnitudes[n->in[i]][k];
  } else {
    for (; c < in.channels; c++) result[c] = after_number(l, n, magnitudes, c);
    for (; c < channels; c++) result[c] = 0; /* of pad_channels */
  }
  for (c = 0; c < channels; c++) largest = result[c] > largest ? result[c] : largest;
  if (n->kind == OP_AFFINE && n->affine.min > -INFINITY && n->affine.max < INFINITY)
    for (c = 0; c < channels; c++) result[c] = limit_of(n);
  return terms * largest;
}

/* Whether no result exceeds MAX_RANGE, where each is at most `most` before the next operation. -1: no memory. */
static int within(const loader *l, double most, double **magnitudes) {
  int i, c, k;
  magnitudes[0] = malloc((size_t)l->values[0].shape.channels * sizeof(double));
  if (!magnitudes[0]) return -1;
  for (c = 0; c < l->values[0].shape.channels; c++) magnitudes[0][c] = 255;
  for (i = 0; i < l->node_count; i++) {
    const node *n = &l->nodes[i];
    const int channels = l->values[n->out].shape.channels;
    double *result = malloc((size_t)channels * sizeof *result);
    magnitudes[n->out] = result;
    if (!result) return -1;
    if (!(one_result(l, n, magnitudes, result) <= MAX_RANGE)) return 0;
    for (c = 0; c < channels; c++)
      if (result[c] > most) result[c] = most;
    for (k = 0; k < n->in_count; k++)
      if (l->values[n->in[k]].last == i) {
        free(magnitudes[n->in[k]]);
        magnitudes[n->in[k]] = NULL;
      }
    if (l->values[n->out].last < 0) {
      free(result);
      magnitudes[n->out] = NULL;
    }
  }
  return 1;
}

binwrn_error binwrn_check_ranges(loader *l) {
  const double most[2] = {INFINITY, MAX_VALUE};
  double **magnitudes;
  int result = 0, round, i, k;
  l->bounded = 1;
  if (l->required & FEATURE_INT8) return BINWRN_OK;
  magnitudes = calloc((size_t)l->value_count, sizeof *magnitudes);
  if (!magnitudes) return binwrn_no_memory(l);
  for (i = 0; i < l->value_count; i++) l->values[i].last = -1;
  for (i = 0; i < l->node_count; i++)
    for (k = 0; k < l->nodes[i].in_count; k++) l->values[l->nodes[i].in[k]].last = i;
  for (round = 0; round < 2 && result == 0; round++) {
    result = within(l, most[round], magnitudes);
    for (i = 0; i < l->value_count; i++) {
      free(magnitudes[i]);
      magnitudes[i] = NULL;
    }
  }
  free(magnitudes);
  if (result < 0) return binwrn_no_memory(l);
  DEMAND(result, "its values can exceed what float32 holds: a scale, offset or minimum is too large");
  l->bounded = round == 1;
  return BINWRN_OK;
}
