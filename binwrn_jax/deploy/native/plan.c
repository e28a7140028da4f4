/* From checked operations to a network that can run: what is joined, where each value lies, the bits in the
 * order in which the kernels read them. */
#define _POSIX_C_SOURCE 200809L

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "loader.h"

void *binwrn_take(binwrn_model *model, uint64_t size) {
  void *block;
  if (size == 0) size = 1;
  if (size > SIZE_MAX - ALIGNMENT || size > model->max_memory - model->bytes) return NULL;
  if (model->block_count == model->block_capacity) {
    size_t capacity = model->block_capacity ? 2 * model->block_capacity : 64;
    void **blocks = realloc(model->blocks, capacity * sizeof *blocks);
    if (!blocks) return NULL;
    model->blocks = blocks;
    model->block_capacity = capacity;
  }
  if (posix_memalign(&block, ALIGNMENT, (size_t)size) != 0) return NULL;
  memset(block, 0, (size_t)size);
  model->blocks[model->block_count++] = block;
  model->bytes += size;
  return block;
}

/* Joins what one pass over the data can do: an affine into the only convolution that reads it, a convolution
 * into the only sum that reads it (where it then runs: its input lives on until then). */
static void fuse(loader *l) {
  int i, k;
  for (i = 0; i < l->value_count; i++) l->values[i].maker = -1;
  for (i = 0; i < l->node_count; i++) l->values[l->nodes[i].out].maker = i;
  for (i = 0; i < l->node_count; i++) {
    node *n = &l->nodes[i];
    if (n->kind == OP_CONV) {
      const int maker = l->values[n->in[0]].maker;
      if (maker >= 0 && l->nodes[maker].kind == OP_AFFINE && l->values[n->in[0]].uses == 1) {
        node *a = &l->nodes[maker];
        n->scale = a->scale, n->offset = a->offset, n->min = a->min, n->has_min = a->has_min;
        n->in[0] = a->in[0];
        a->fused = 1;
      }
    }
    for (k = 0; n->kind == OP_ADD && k < 2; k++) {
      const int maker = l->values[n->in[k]].maker;
      if (maker >= 0 && l->nodes[maker].kind == OP_CONV && l->values[n->in[k]].uses == 1 &&
          l->nodes[maker].add < 0) {
        const int out = n->out, other = n->in[1 - k];
        node *c = &l->nodes[maker];
        *n = *c;
        n->out = out;
        n->add = other;
        c->fused = 1;
        break;
      }
    }
  }
}

/* Places all values in the arena, each where nothing lies that is still needed; an elementwise operation may
 * write where its input lies. Returns the size in floats, or -1 without memory. */
static int64_t place(loader *l) {
  int *live = malloc((size_t)l->value_count * sizeof *live); /* values, by offset */
  int live_count = 0, i, k;
  uint64_t top = 0;
  if (!live) return -1;
  for (i = 0; i < l->value_count; i++) {
    value *v = &l->values[i];
    v->last = -1;
    v->offset = -1;
    v->size = (elements(v->shape) + 15) / 16 * 16; /* whole cache lines */
  }
  for (i = 0; i < l->node_count; i++) {
    const node *n = &l->nodes[i];
    if (n->fused) continue;
    l->values[n->in[0]].last = i;
    if (n->in[1] >= 0) l->values[n->in[1]].last = i;
    if (n->add >= 0) l->values[n->add].last = i;
  }
  for (i = -1; i < l->node_count; i++) { /* -1: the image */
    const node *n = i < 0 ? NULL : &l->nodes[i];
    const int out = n ? n->out : 0;
    value *v = &l->values[out];
    uint64_t at = 0;
    int reuse = -1;
    if (n && (n->fused || n->kind == OP_MEAN)) continue; /* the logits are the caller's */
    if (n && n->kind == OP_AFFINE) reuse = n->in[0];
    if (n && n->kind == OP_ADD) reuse = l->values[n->in[0]].last == i ? n->in[0] : n->in[1];
    if (n && n->kind == OP_CONV && n->add >= 0 && n->add != n->in[0]) reuse = n->add;
    if (reuse >= 0 && l->values[reuse].last == i) {
      v->offset = l->values[reuse].offset;
      for (k = 0; live[k] != reuse; k++) {
      }
      live[k] = out;
    } else {
      for (k = 0; k < live_count; k++) { /* the first gap that is large enough */
        const value *other = &l->values[live[k]];
        if ((uint64_t)other->offset >= at + v->size) break;
        at = (uint64_t)other->offset + other->size;
      }
      v->offset = (int64_t)at;
      memmove(live + k + 1, live + k, (size_t)(live_count - k) * sizeof *live);
      live[k] = out;
      live_count++;
      if (at + v->size > top) top = at + v->size;
    }
    for (k = 0; k < live_count;) /* what nobody reads any more makes room */
      if (l->values[live[k]].last <= i)
        memmove(live + k, live + k + 1, (size_t)(--live_count - k) * sizeof *live);
      else
        k++;
  }
  free(live);
  return (int64_t)top;
}

/* The bits of a convolution in the order in which the kernel reads them. */
static void arrange(const node *n, const operation *op, const kernel *k) {
  const conv_plan *plan = &op->conv;
  const size_t row_bytes = n->row_bytes, lanes = (size_t)k->lanes;
  const int channels = op->in.channels;
  uint32_t codes[MAX_STAGE][1 << MAX_GROUP]; /* of each slot and all bits of a group */
  unsigned b;
  int o, t, g, slot;
  for (slot = 0; slot < k->slots; slot++)
    for (b = 0; b < 1u << k->group; b++) codes[slot][b] = k->code(b, slot);
  for (o = 0; o < op->out.channels; o++) {
    const unsigned char *row = n->bits + (size_t)o * row_bytes;
    uint32_t *block = plan->words +
                      (size_t)(o / k->lanes) * (size_t)plan->chunks * (size_t)plan->tap_count * lanes +
                      (size_t)(o % k->lanes);
    for (t = 0; t < plan->tap_count; t++) {
      uint32_t *word = block + (size_t)t * lanes;
      for (g = slot = 0; g < plan->groups; g++) {
        const size_t at = (size_t)t * (size_t)channels + (size_t)(g * k->group);
        const int left = channels - g * k->group, used = left < k->group ? left : k->group;
        unsigned window = row[at / 8];
        if (at / 8 + 1 < row_bytes) window |= (unsigned)row[at / 8 + 1] << 8;
        *word |= codes[slot][window >> at % 8 & ((1u << used) - 1)];
        if (++slot == k->slots) slot = 0, word += (size_t)plan->tap_count * lanes;
      }
    }
  }
}

const float *binwrn_copy_floats(loader *l, binwrn_model *model, const tensor *t) {
  const size_t count = (size_t)(t->end - t->begin) / 4;
  float *result = binwrn_take(model, count * sizeof *result);
  size_t i;
  for (i = 0; result && i < count; i++) result[i] = binwrn_read_float(l->data + t->begin + 4 * i);
  return result;
}

binwrn_error binwrn_plan(loader *l, binwrn_model *model) {
  const kernel *k = model->kernel;
  binwrn_description *d = &model->description;
  int64_t arena;
  uint64_t tables = 0, sums = 0;
  int i;
  if (l->bounded) /* else each value is compared with MAX_VALUE, and so has to be there */
    fuse(l);
  model->guarded = !l->bounded;
  arena = place(l);
  if (arena < 0) return binwrn_no_memory(l);
  d->arena_bytes = (uint64_t)arena * sizeof(float);
  model->arena = binwrn_take(model, d->arena_bytes);
  model->operations = binwrn_take(model, ((uint64_t)l->node_count + 1) * sizeof *model->operations);
  if (!model->arena || !model->operations) return binwrn_no_memory(l);
  model->operations[0].kind = OP_IMAGE;
  model->operations[0].out = l->values[0].shape;
  model->operations[0].result = model->arena + l->values[0].offset;
  model->operations[0].items = l->values[0].shape.height;
  model->operation_count = 1;
  for (i = 0; i < l->node_count; i++) {
    const node *n = &l->nodes[i];
    operation *op = &model->operations[model->operation_count];
    if (n->fused) continue;
    model->operation_count++;
    op->kind = n->kind;
    op->in = l->values[n->in[0]].shape;
    op->out = l->values[n->out].shape;
    memcpy(op->window, n->window, sizeof op->window);
    memcpy(op->stride, n->stride, sizeof op->stride);
    memcpy(op->pads, n->pads, sizeof op->pads);
    op->x = model->arena + l->values[n->in[0]].offset;
    if (n->in[1] >= 0) op->y = model->arena + l->values[n->in[1]].offset;
    if (n->add >= 0) op->y = model->arena + l->values[n->add].offset;
    if (n->kind != OP_MEAN) op->result = model->arena + l->values[n->out].offset;
    op->items = n->kind == OP_MEAN ? 1 : op->out.height;
    if (n->scale) {
      op->affine.scale = binwrn_copy_floats(l, model, n->scale);
      op->affine.offset = binwrn_copy_floats(l, model, n->offset);
      if (!op->affine.scale || !op->affine.offset) return binwrn_no_memory(l);
      op->affine.min = n->has_min ? n->min : -INFINITY;
    }
    if (n->kind == OP_CONV) {
      uint64_t words, table, sum;
      op->conv.taps = binwrn_take(model, (uint64_t)n->window[0] * (uint64_t)n->window[1] * sizeof *op->conv.taps);
      if (!op->conv.taps || !binwrn_plan_conv(op, k, d->threads)) return binwrn_no_memory(l);
      words = (uint64_t)op->conv.blocks * (uint64_t)op->conv.chunks * (uint64_t)op->conv.tap_count *
              (uint64_t)k->lanes; /* at most 2^13 * 2^14 * 2^12 * 2^4 */
      op->conv.words = binwrn_take(model, words * sizeof *op->conv.words);
      if (!op->conv.words) return binwrn_no_memory(l);
      arrange(n, op, k);
      d->weight_bytes += words * sizeof *op->conv.words;
      d->multiply_adds += elements(op->out) * (uint64_t)op->conv.tap_count * (uint64_t)op->in.channels;
      table = (uint64_t)op->conv.row_floats * (uint64_t)op->conv.in_rows;
      sum = (uint64_t)op->conv.blocks * (uint64_t)op->conv.tile_rows * (uint64_t)(PIXELS * k->lanes);
      if (table > tables) tables = table;
      if (sum > sums) sums = sum;
    }
  }
  model->table_floats = (size_t)tables; /* whole cache lines: a pixel's tables are */
  model->scratch_size = (size_t)((tables + sums + 15) / 16 * 16 * sizeof(float));
  d->scratch_bytes = (uint64_t)model->scratch_size * (uint64_t)d->threads;
  model->scratch = binwrn_take(model, d->scratch_bytes);
  return model->scratch ? BINWRN_OK : binwrn_no_memory(l);
}
