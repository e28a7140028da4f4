/* From checked operations to a network that can run: what is joined, and where each value lies. */
#define _POSIX_C_SOURCE 200809L

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

/* The operation that makes a value which nothing else reads; NULL where there is none of that kind. */
static node *sole_maker(loader *l, int v, op_kind kind) {
  const int maker = l->values[v].maker;
  return maker >= 0 && l->nodes[maker].kind == kind && !l->nodes[maker].fused && l->values[v].uses == 1
             ? &l->nodes[maker]
             : NULL;
}

/* Makes of an operation the convolution before it, which then runs here: its input lives on until then. */
static void take_over(loader *l, int i, node *c) {
  const int out = l->nodes[i].out;
  l->nodes[i] = *c;
  l->nodes[i].out = out;
  c->fused = 1;
}

/* Joins what one pass over the data can do: a convolution into the only affine that reads it, and that into the only
 * sum; an affine that is left into the only convolution that reads it. A depthwise convolution would compute that
 * affine for each of its taps, and where values are compared with MAX_VALUE, this one would not be there. */
static void fuse(loader *l) {
  int i, k;
  node *c;
  for (i = 0; i < l->value_count; i++) l->values[i].maker = -1;
  for (i = 0; i < l->node_count; i++) l->values[l->nodes[i].out].maker = i;
  for (i = 0; i < l->node_count; i++) {
    const node_affine after = l->nodes[i].affine;
    c = l->nodes[i].kind == OP_AFFINE ? sole_maker(l, l->nodes[i].in[0], OP_CONV) : NULL;
    if (!c || c->after.scale) continue;
    take_over(l, i, c);
    l->nodes[i].after = after;
  }
  for (i = 0; i < l->node_count; i++)
    for (k = 0; l->nodes[i].kind == OP_ADD && k < 2; k++) {
      const int other = l->nodes[i].in[1 - k];
      c = sole_maker(l, l->nodes[i].in[k], OP_CONV);
      if (!c || c->add >= 0) continue;
      take_over(l, i, c);
      l->nodes[i].add = other;
    }
  for (i = 0; i < l->node_count; i++) {
    node *n = &l->nodes[i], *a = n->kind == OP_CONV && !n->fused ? sole_maker(l, n->in[0], OP_AFFINE) : NULL;
    if (!a || !l->bounded || binwrn_is_depthwise(l, n)) continue;
    n->affine = a->affine;
    n->in[0] = a->in[0];
    a->fused = 1;
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
    for (k = 0; k < n->in_count; k++) l->values[n->in[k]].last = i;
    if (n->add >= 0) l->values[n->add].last = i;
  }
  for (i = -1; i < l->node_count; i++) { /* -1: the image */
    const node *n = i < 0 ? NULL : &l->nodes[i];
    const int out = n ? n->out : 0;
    value *v = &l->values[out];
    uint64_t at = 0;
    int reuse = -1;
    if (n && (n->fused || n->kind == OP_MEAN)) continue; /* the logits are the caller's */
    if (n && (n->kind == OP_AFFINE || n->kind == OP_ELEMENTWISE || n->kind == OP_PRODUCT)) reuse = n->in[0];
    if (n && n->kind == OP_ADD) reuse = l->values[n->in[0]].last == i ? n->in[0] : n->in[1];
    if (n && n->kind == OP_CONV && n->add >= 0 && n->add != n->in[0] && !binwrn_is_depthwise(l, n)) reuse = n->add;
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

const float *binwrn_copy_floats(loader *l, binwrn_model *model, const tensor *t) {
  const size_t count = (size_t)(t->end - t->begin) / 4;
  float *result = binwrn_take(model, count * sizeof *result);
  size_t i;
  for (i = 0; result && i < count; i++) result[i] = binwrn_read_float(l->data + t->begin + 4 * i);
  return result;
}

/* A multiply-add, ready to run. */
static binwrn_error copy_affine(loader *l, binwrn_model *model, const node_affine *from, affine *to) {
  to->min = from->min, to->max = from->max;
  if (!from->scale) return BINWRN_OK;
  to->scale = binwrn_copy_floats(l, model, from->scale);
  to->offset = binwrn_copy_floats(l, model, from->offset);
  return to->scale && to->offset ? BINWRN_OK : binwrn_no_memory(l);
}

/* The inputs of a concatenation. */
static binwrn_error copy_parts(loader *l, binwrn_model *model, const node *n, operation *op) {
  int i;
  op->all_count = n->in_count;
  op->all = binwrn_take(model, (uint64_t)n->in_count * sizeof *op->all);
  if (!op->all) return binwrn_no_memory(l);
  for (i = 0; i < n->in_count; i++) {
    op->all[i].x = model->arena + l->values[n->in[i]].offset;
    op->all[i].channels = l->values[n->in[i]].shape.channels;
  }
  return BINWRN_OK;
}

/* Makes an operation of a node. */
static binwrn_error prepare(loader *l, binwrn_model *model, const node *n, operation *op) {
  const int second = n->kind == OP_CONV ? n->add : n->in_count == 2 ? n->in[1] : -1;
  op->kind = n->kind;
  op->choice = n->choice;
  op->number = n->number;
  op->in = l->values[n->in[0]].shape;
  op->out = l->values[n->out].shape;
  memcpy(op->window, n->window, sizeof op->window);
  memcpy(op->stride, n->stride, sizeof op->stride);
  memcpy(op->pads, n->pads, sizeof op->pads);
  memcpy(op->dilation, n->dilation, sizeof op->dilation);
  op->x = model->arena + l->values[n->in[0]].offset;
  if (second >= 0) {
    op->y = model->arena + l->values[second].offset;
    op->second = l->values[second].shape;
  }
  if (n->kind != OP_MEAN) op->result = model->arena + l->values[n->out].offset;
  op->items = op->out.height;
  if (n->kind == OP_MEAN || n->kind == OP_GLOBAL_POOL) op->items = (op->out.channels + SLICE - 1) / SLICE;
  if (n->kind == OP_CONCAT) TRY(copy_parts(l, model, n, op));
  if (model->integer) return binwrn_prepare_integers(l, n, op, model);
  TRY(copy_affine(l, model, &n->affine, &op->affine));
  TRY(copy_affine(l, model, &n->after, &op->after));
  return n->kind == OP_CONV ? binwrn_arrange(l, n, op, model) : BINWRN_OK;
}

binwrn_error binwrn_plan(loader *l, binwrn_model *model) {
  binwrn_description *d = &model->description;
  size_t sums = 0;
  int64_t arena;
  int i;
  model->integer = (l->required & FEATURE_INT8) != 0;
  if (!model->integer) fuse(l);
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
  for (i = 0; i < l->node_count; i++)
    if (!l->nodes[i].fused) {
      operation *op = &model->operations[model->operation_count++];
      TRY(prepare(l, model, &l->nodes[i], op));
      if (op->kind == OP_CONV && !model->integer) binwrn_conv_scratch(model, op, &model->table_floats, &sums);
    }
  model->scratch_size = (model->table_floats + sums + 15) / 16 * 16 * sizeof(float);
  d->scratch_bytes = (uint64_t)model->scratch_size * (uint64_t)d->threads;
  model->scratch = binwrn_take(model, d->scratch_bytes);
  return model->scratch ? BINWRN_OK : binwrn_no_memory(l);
}
