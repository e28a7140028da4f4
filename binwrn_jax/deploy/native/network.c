/* The network as a whole: its image, its operations in order, and what their tensors hold. */
#include <stdlib.h>
#include <string.h>

#include "loader.h"
#include "sha256.h"

#define MAX_OPERATIONS 4096

/* All tensors are within the limit when coded ones are decoded. */
static binwrn_error check_bytes(loader *l) {
  uint64_t bytes = 0;
  int i;
  for (i = 0; i < l->tensor_count; i++)
    if (l->tensors[i].dtype != DTYPE_U16) bytes += l->tensors[i].end - l->tensors[i].begin;
  for (i = 0; i < l->node_count; i++)
    if (l->nodes[i].coded) {
      bytes += (uint64_t)l->values[l->nodes[i].out].shape.channels * l->nodes[i].row_bytes;
      DEMAND(bytes <= MAX_DATA, "more than 256 MiB of tensors");
    }
  return BINWRN_OK;
}

/* A place for each input that an operation can have; what is no list of inputs is refused later. */
static int count_inputs(const loader *l, const json_value *operations) {
  const json_document *d = &l->metadata;
  const json_value *op;
  int count = 1;
  for (op = binwrn_json_first(d, operations); op; op = binwrn_json_next(d, op)) {
    const json_value *inputs = binwrn_json_member(d, op, "in");
    if (inputs && inputs->type == JSON_ARRAY) count += (int)inputs->count; /* of at most 2^20 values */
  }
  return count;
}

/* The shape of an image; the first value. */
static binwrn_error read_input(loader *l, uint64_t *sides) {
  const json_document *d = &l->metadata;
  const json_value *input = binwrn_json_member(d, l->root, "input"), *image = binwrn_json_member(d, input, "shape"),
                   *field;
  int limits[2], i = 0;
  DEMAND(image && image->type == JSON_ARRAY && image->count == 3, "the input's shape is not [H, W, C]");
  for (field = binwrn_json_first(d, image); field; field = binwrn_json_next(d, field)) {
    DEMAND(binwrn_is_int(field, 1, MAX_SIDE), "the input's shape is not [H, W, C]");
    sides[i++] = (uint64_t)field->integer;
  }
  DEMAND(binwrn_json_is_string(binwrn_json_member(d, input, "dtype"), "uint8"),
         "the input's dtype is not 'uint8'");
  DEMAND(binwrn_pair(d, binwrn_json_member(d, input, "range"), 0, 255, limits) && limits[0] == 0 && limits[1] == 255,
         "the input's range is not [0, 255]");
  return BINWRN_OK;
}

binwrn_error binwrn_read_network(loader *l) {
  const json_document *d = &l->metadata;
  const json_value *operations = binwrn_json_member(d, l->root, "operations"), *op;
  uint64_t sides[3], classes = (uint64_t)l->classes, activations, work = 0;
  int i, count;
  shape s;
  TRY(read_input(l, sides));
  DEMAND(operations && operations->type == JSON_ARRAY && operations->count >= 1 &&
             operations->count <= MAX_OPERATIONS,
         "no list of 1 to %d operations", MAX_OPERATIONS);
  count = (int)operations->count;
  l->values = calloc((size_t)count + 1, sizeof *l->values);
  l->nodes = calloc((size_t)count, sizeof *l->nodes);
  l->inputs = malloc((size_t)count_inputs(l, operations) * sizeof *l->inputs);
  if (!l->values || !l->nodes || !l->inputs) return binwrn_no_memory(l);
  l->values[0].shape.height = (int)sides[0];
  l->values[0].shape.width = (int)sides[1];
  l->values[0].shape.channels = (int)sides[2];
  l->value_count = 1;
  activations = elements(l->values[0].shape);
  for (i = 0, op = binwrn_json_first(d, operations); op; op = binwrn_json_next(d, op), i++)
    TRY(binwrn_read_operation(l, i, count, op, &activations, &work));
  TRY(binwrn_check_features(l));

  DEMAND(l->nodes[count - 1].kind == OP_MEAN, "the last operation is not global_average");
  s = l->values[l->value_count - 1].shape;
  DEMAND(s.channels == l->classes, "the operations end in %d logits, but there are %d classes", s.channels,
         l->classes);
  TRY(binwrn_need(l, "golden", 6, ".image", DTYPE_U8, 3, sides, &l->golden_image));
  TRY(binwrn_need(l, "golden", 6, ".logits", l->required & FEATURE_INT8 ? DTYPE_I32 : DTYPE_F32, 1, &classes, &l->golden_logits));
  for (i = 0; i < l->tensor_count; i++)
    DEMAND(l->tensors[i].used, "tensor '%s' is used by no operation",
           binwrn_shorten(l->tensors[i].name, l->tensors[i].length).text);
  return check_bytes(l);
}

binwrn_error binwrn_check_tensors(loader *l) {
  const json_value *stated = binwrn_json_member(&l->metadata, l->root, "sha256");
  char hex[65];
  sha256 hash;
  int i;
  binwrn_sha256_start(&hash);
  for (i = 0; i < l->node_count; i++) {
    const node *n = &l->nodes[i];
    if (n->kind == OP_CONV) {
      const tensor *plain = n->bits ? n->bits : n->floats; /* NULL: decoded already */
      const size_t rows = (size_t)l->values[n->out].shape.channels;
      const unsigned channels = (unsigned)(l->values[n->in[0]].shape.channels / n->groups),
                     used = (unsigned)n->window[0] * (unsigned)n->window[1] * channels % 8;
      size_t row;
      if (plain) l->nodes[i].weights = l->data + plain->begin;
      binwrn_sha256_update(&hash, n->weights, rows * n->row_bytes);
      for (row = 1; used && !n->floats && row <= rows; row++)
        DEMAND(n->weights[row * n->row_bytes - 1] >> used == 0, "operation %d: padding bits are set", i);
      for (row = 0; n->floats && n->floats->dtype == DTYPE_I8 && row < rows * n->row_bytes; row++)
        DEMAND(n->weights[row] != 128, "operation %d: a weight is -128", i);
    }
  }
  binwrn_sha256_hex(&hash, hex);
#ifndef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION /* a fuzzer does not find checksums */
  DEMAND(binwrn_json_is_string(stated, hex), "the bits do not have the checksum stated");
#else
  (void)stated;
#endif
  for (i = 0; i < l->tensor_count; i++) {
    const tensor *t = &l->tensors[i];
    uint64_t at;
    for (at = t->begin; t->dtype == DTYPE_F32 && at < t->end; at += 4)
      DEMAND((binwrn_little_endian(l->data + at, 4) >> 23 & 255) != 255, "tensor '%s' is not finite",
             binwrn_shorten(t->name, t->length).text);
  }
  return BINWRN_OK;
}
