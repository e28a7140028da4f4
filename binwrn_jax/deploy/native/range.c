/* How large values can become, whatever the image; docs/packed-format.md defines it. */
#include <math.h>
#include <stdlib.h>

#include "loader.h"

#define MAX_RANGE 85070591730234615865843651857942052864.0 /* 2^126 */

static float number(const loader *l, const tensor *t, int i) {
  return binwrn_read_float(l->data + t->begin + 4 * (uint64_t)i);
}

/* The magnitudes of one result, by channel, from those of its inputs. Returns the largest, or a sum that is
 * divided afterwards. */
static double one_result(const loader *l, const node *n, double *const *magnitudes, double *result) {
  const double *x = magnitudes[n->in[0]];
  const shape in = l->values[n->in[0]].shape;
  const int channels = l->values[n->out].shape.channels;
  double sum = 0, terms = 1, largest = 0;
  int c;
  if (n->kind == OP_CONV) {
    for (c = 0; c < in.channels; c++) sum += x[c];
    sum *= (double)n->window[0] * n->window[1];
  }
  if (n->kind == OP_AVERAGE_POOL) terms = (double)n->window[0] * n->window[1];
  if (n->kind == OP_MEAN) terms = (double)in.height * in.width;
  for (c = 0; c < channels; c++) {
    double m;
    if (n->kind == OP_CONV)
      m = sum;
    else if (c >= in.channels)
      m = 0; /* of pad_channels */
    else if (n->kind == OP_ADD)
      m = x[c] + magnitudes[n->in[1]][c];
    else
      m = x[c];
    if (n->kind == OP_AFFINE) {
      m = fabs((double)number(l, n->scale, c)) * m + fabs((double)number(l, n->offset, c));
      if (n->has_min && fabs((double)n->min) > m) m = fabs((double)n->min);
    }
    if (m > largest) largest = m;
    result[c] = m;
  }
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
    for (k = 0; k < 2; k++)
      if (n->in[k] >= 0 && l->values[n->in[k]].last == i) {
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
  double **magnitudes = calloc((size_t)l->value_count, sizeof *magnitudes);
  int result = 0, round, i;
  if (!magnitudes) return binwrn_no_memory(l);
  for (i = 0; i < l->value_count; i++) l->values[i].last = -1;
  for (i = 0; i < l->node_count; i++) {
    l->values[l->nodes[i].in[0]].last = i;
    if (l->nodes[i].in[1] >= 0) l->values[l->nodes[i].in[1]].last = i;
  }
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
