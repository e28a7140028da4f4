/* The weights of a convolution in the order in which the kernels read them. */
#include <math.h>

#include "loader.h"

/* Expanded to floats, signs take 32 times as much memory: no more than this, in floats. */
#define MAX_EXPANDED (1 << 20)

int binwrn_is_depthwise(const loader *l, const node *n) {
  const int inputs = l->values[n->in[0]].shape.channels;
  return n->groups == inputs && n->groups == l->values[n->out].shape.channels;
}

/* A weight as a float; `at` counts those of a row. */
static float weight(const node *n, int row, size_t at) {
  const unsigned char *bytes = n->weights + (size_t)row * n->row_bytes;
  if (n->floats) return binwrn_read_float(bytes + 4 * at);
  return bytes[at / 8] >> at % 8 & 1 ? 1.0f : -1.0f;
}

/* Where the weights of an output channel begin, in numbers of 32 bits. */
static size_t block_start(const operation *op, const summation *s, int o) {
  const conv_plan *plan = &op->conv;
  const size_t block = (size_t)(o / plan->outputs) * (size_t)plan->blocks + (size_t)(o % plan->outputs / s->lanes);
  return block * (size_t)plan->chunks * (size_t)plan->tap_count * (size_t)(s->lanes * s->words) +
         (size_t)(o % plan->outputs % s->lanes);
}

/* The same of a tap and a slot: those of chunk c come after all taps of the chunks before it. */
static size_t slot_start(const operation *op, const summation *s, int tap, int chunk) {
  const int taps = op->window[0] * op->window[1];
  return ((size_t)chunk * (size_t)taps + (size_t)tap) * (size_t)(s->lanes * s->words);
}

static void arrange_signs(const node *n, operation *op, const kernel *k, uint32_t *words) {
  const conv_plan *plan = &op->conv;
  const summation *s = &k->signs;
  const int taps = op->window[0] * op->window[1], channels = plan->inputs;
  uint32_t codes[MAX_STAGE][1 << MAX_BUNDLE]; /* of each slot and all bits of a bundle */
  unsigned b;
  int o, t, g, slot, chunk;
  for (slot = 0; slot < s->slots; slot++)
    for (b = 0; b < 1u << s->bundle; b++) codes[slot][b] = k->code(b, slot);
  for (o = 0; o < op->out.channels; o++) {
    const unsigned char *row = n->weights + (size_t)o * n->row_bytes;
    uint32_t *block = words + block_start(op, s, o);
    for (t = 0; t < taps; t++)
      for (g = slot = chunk = 0; g < plan->bundles; g++) {
        const size_t at = (size_t)t * (size_t)channels + (size_t)(g * s->bundle);
        const int left = channels - g * s->bundle, used = left < s->bundle ? left : s->bundle;
        unsigned bits = row[at / 8];
        if (at / 8 + 1 < n->row_bytes) bits |= (unsigned)row[at / 8 + 1] << 8;
        block[slot_start(op, s, t, chunk)] |= codes[slot][bits >> at % 8 & ((1u << used) - 1)];
        if (++slot == s->slots) slot = 0, chunk++;
      }
  }
}

static void arrange_floats(const node *n, operation *op, const kernel *k, float *floats) {
  const conv_plan *plan = &op->conv;
  const summation *s = &k->floats;
  const int taps = op->window[0] * op->window[1];
  int o, t, c;
  for (o = 0; o < op->out.channels; o++)
    for (t = 0; t < taps; t++)
      for (c = 0; c < plan->inputs; c++)
        floats[block_start(op, s, o) + slot_start(op, s, t, c / s->slots) + (size_t)(c % s->slots * s->lanes)] =
            weight(n, o, (size_t)(t * plan->inputs + c));
}

static binwrn_error arrange_depthwise(loader *l, const node *n, operation *op, binwrn_model *model) {
  const int taps = op->window[0] * op->window[1], channels = op->out.channels;
  const uint64_t count = (uint64_t)taps * (uint64_t)channels;
  float *weights = binwrn_take(model, count * sizeof *weights);
  int t, c;
  if (!weights) return binwrn_no_memory(l);
  for (t = 0; t < taps; t++)
    for (c = 0; c < channels; c++) weights[(size_t)t * (size_t)channels + (size_t)c] = weight(n, c, (size_t)t);
  op->conv.weights = weights;
  model->description.weight_bytes += count * sizeof *weights;
  return BINWRN_OK;
}

/* A table of signs costs as much as some look-ups: where only few look-ups share it, floats are faster. */
static conv_method choose_method(const node *n, const operation *op, const kernel *k) {
  const conv_plan *plan = &op->conv;
  const int lookups = op->window[0] * op->window[1] * ((plan->outputs + k->signs.lanes - 1) / k->signs.lanes);
  const uint64_t expanded = (uint64_t)plan->groups * (uint64_t)lookups * (uint64_t)k->floats.lanes *
                            (uint64_t)(plan->inputs + k->floats.slots);
  if (n->floats) return METHOD_FLOATS;
  return lookups <= 2 && expanded <= MAX_EXPANDED ? METHOD_FLOATS : METHOD_SIGNS;
}

binwrn_error binwrn_arrange(loader *l, const node *n, operation *op, binwrn_model *model) {
  const kernel *k = model->kernel;
  binwrn_description *d = &model->description;
  conv_plan *plan = &op->conv;
  const uint64_t window = (uint64_t)n->window[0] * (uint64_t)n->window[1];
  const summation *s;
  uint64_t count;
  void *weights;
  plan->groups = n->groups;
  plan->inputs = op->in.channels / n->groups;
  plan->outputs = op->out.channels / n->groups;
  d->multiply_adds += elements(op->out) * window * (uint64_t)plan->inputs;
  if (binwrn_is_depthwise(l, n)) {
    plan->method = METHOD_DEPTHWISE;
    return arrange_depthwise(l, n, op, model);
  }
  plan->method = choose_method(n, op, k);
  s = summation_of(k, plan);
  if (!binwrn_plan_conv(op, k, d->threads)) return binwrn_no_memory(l);
  plan->taps = binwrn_take(model, (uint64_t)plan->tap_count * sizeof *plan->taps);
  if (!plan->taps) return binwrn_no_memory(l);
  binwrn_plan_conv(op, k, d->threads);
  count = (uint64_t)plan->groups * (uint64_t)plan->blocks * (uint64_t)plan->chunks * (uint64_t)plan->tap_count *
          (uint64_t)(s->lanes * s->words); /* at most 2^16 * 2^14 * 2^14 * 2^12 * 2^4 * 2^5 / 2^16 */
  weights = binwrn_take(model, count * sizeof(uint32_t));
  if (!weights) return binwrn_no_memory(l);
  plan->weights = weights;
  d->weight_bytes += count * sizeof(uint32_t);
  if (plan->method == METHOD_FLOATS)
    arrange_floats(n, op, k, weights);
  else
    arrange_signs(n, op, k, weights);
  return BINWRN_OK;
}
