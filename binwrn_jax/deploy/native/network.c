/* The operations of a network, checked, and what their tensors hold. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "entropy.h"
#include "loader.h"
#include "sha256.h"

#define MAX_OPERATIONS 4096
#define MAX_SIDE 4096
#define MAX_WINDOW 64
#define MAX_ACTIVATIONS ((uint64_t)1 << 27)
#define MAX_WORK ((uint64_t)1 << 38)
#define MAX_NAME 64 /* code points in the name of a value */

static const struct {
  const char *name;
  op_kind kind;
  const char *fields[7];
} OPERATIONS[] = {
    {"affine", OP_AFFINE, {"tensor", "min", NULL}},
    {"conv", OP_CONV, {"tensor", "window", "stride", "pads", "channels", "coding", NULL}},
    {"average_pool", OP_AVERAGE_POOL, {"window", "stride", "pads", NULL}},
    {"max_pool", OP_MAX_POOL, {"window", "stride", "pads", NULL}},
    {"pad_channels", OP_PAD, {"channels", NULL}},
    {"add", OP_ADD, {NULL}},
    {"global_average", OP_MEAN, {NULL}},
};

/* The value of that name, or -1. */
static int find_value(const loader *l, const json_value *name) {
  int i;
  if (!name || name->type != JSON_STRING) return -1;
  for (i = l->value_count - 1; i >= 0; i--) /* mostly a recent one */
    if (l->values[i].name ? l->values[i].name->length == name->length &&
                                memcmp(l->values[i].name->text, name->text, name->length) == 0
                          : binwrn_json_is_string(name, "image"))
      return i;
  return -1;
}

static int characters(const json_value *string) {
  size_t i;
  int count = 0;
  for (i = 0; i < string->length && count <= MAX_NAME; i++) count += (string->text[i] & 0xC0) != 0x80;
  return count;
}

/* A tensor that an operation needs: there, of that kind, and used by no other. */
static binwrn_error need(loader *l, const char *name, size_t length, const char *suffix, int is_float,
                         int dimensions, uint64_t a, uint64_t b, uint64_t c, const tensor **result) {
  tensor *t = binwrn_find_tensor(l, name, length, suffix);
  const uint64_t wanted[3] = {a, b, c};
  const brief text = binwrn_shorten(name, length);
  int i;
  DEMAND(t, "tensor '%s%s' is missing", text.text, suffix);
  DEMAND(!t->used, "tensor '%s%s' is used twice", text.text, suffix);
  DEMAND(t->is_float == is_float && !t->is_coded && t->dimensions == dimensions,
         "tensor '%s%s' has another dtype or shape", text.text, suffix);
  for (i = 0; i < dimensions; i++)
    DEMAND(t->shape[i] == wanted[i], "tensor '%s%s' does not fit its operation", text.text, suffix);
  t->used = 1;
  *result = t;
  return BINWRN_OK;
}

/* The coded bits of a 3x3 convolution. */
static binwrn_error need_coded(loader *l, int index, const json_value *name, const json_value *coding, node *n) {
  tensor *t = binwrn_find_tensor(l, name->text, name->length, ".coded");
  const brief text = binwrn_shorten(name->text, name->length);
  DEMAND(binwrn_json_is_string(coding, "rans"), "operation %d: its coding is not 'rans'", index);
  DEMAND(n->window[0] == 3 && n->window[1] == 3, "operation %d: a coded kernel that is not of 3 x 3", index);
  DEMAND(t, "tensor '%s.coded' is missing", text.text);
  DEMAND(!t->used, "tensor '%s.coded' is used twice", text.text);
  DEMAND(t->is_coded && t->dimensions == 1, "tensor '%s.coded' has another dtype or shape", text.text);
  t->used = 1;
  n->coded = t;
  return BINWRN_OK;
}

static binwrn_error slide(loader *l, int index, const json_value *op, shape in, node *n, shape *out) {
  const json_document *d = &l->metadata;
  const json_value *pads = binwrn_json_member(d, op, "pads");
  int side[2], result[2], i;
  DEMAND(binwrn_pair(d, binwrn_json_member(d, op, "window"), 1, MAX_WINDOW, n->window),
         "operation %d: bad window", index);
  DEMAND(binwrn_pair(d, binwrn_json_member(d, op, "stride"), 1, MAX_WINDOW, n->stride),
         "operation %d: bad stride", index);
  DEMAND(pads && pads->type == JSON_ARRAY && pads->count == 2 &&
             binwrn_pair(d, binwrn_json_first(d, pads), 0, n->window[0] - 1, n->pads[0]) &&
             binwrn_pair(d, binwrn_json_next(d, binwrn_json_first(d, pads)), 0, n->window[1] - 1, n->pads[1]),
         "operation %d: bad pads", index);
  side[0] = in.height, side[1] = in.width;
  for (i = 0; i < 2; i++) {
    int room = side[i] + n->pads[i][0] + n->pads[i][1] - n->window[i];
    DEMAND(room >= 0, "operation %d: its window does not fit into the image", index);
    result[i] = room / n->stride[i] + 1;
  }
  out->height = result[0], out->width = result[1];
  return BINWRN_OK;
}

static binwrn_error read_operation(loader *l, int index, int count, const json_value *op, uint64_t *activations,
                                   uint64_t *work) {
  const json_document *d = &l->metadata;
  const json_value *kind = binwrn_json_member(d, op, "op"), *inputs = binwrn_json_member(d, op, "in"),
                   *out = binwrn_json_member(d, op, "out"), *tensor_name = binwrn_json_member(d, op, "tensor"),
                   *field, *min;
  node *n = &l->nodes[l->node_count];
  value *v = &l->values[l->value_count];
  uint64_t cost = 1;
  size_t k, f;
  int wanted, channels[2], i;
  shape x, result;
  DEMAND(op->type == JSON_OBJECT, "operation %d is not an object", index);
  for (k = 0; k < sizeof OPERATIONS / sizeof *OPERATIONS; k++)
    if (binwrn_json_is_string(kind, OPERATIONS[k].name)) break;
  DEMAND(k < sizeof OPERATIONS / sizeof *OPERATIONS, "operation %d: unknown op", index);
  n->kind = OPERATIONS[k].kind;
  for (field = binwrn_json_first(d, op); field; field = binwrn_json_next(d, binwrn_json_next(d, field))) {
    int known = binwrn_json_is_string(field, "op") || binwrn_json_is_string(field, "in") ||
                binwrn_json_is_string(field, "out");
    for (f = 0; !known && OPERATIONS[k].fields[f]; f++)
      known = binwrn_json_is_string(field, OPERATIONS[k].fields[f]);
    if (l->version == 1 && binwrn_json_is_string(field, "coding")) known = 0;
    DEMAND(known, "operation %d (%s): unknown field '%s'", index, OPERATIONS[k].name,
           binwrn_shorten(field->text, field->length).text);
  }
  wanted = n->kind == OP_ADD ? 2 : 1;
  DEMAND(inputs && inputs->type == JSON_ARRAY && (int64_t)inputs->count == wanted,
         "operation %d has not %d inputs", index, wanted);
  n->in[1] = n->add = -1;
  field = binwrn_json_first(d, inputs);
  for (i = 0; i < wanted; i++, field = binwrn_json_next(d, field)) {
    n->in[i] = find_value(l, field);
    DEMAND(n->in[i] >= 0, "operation %d: its inputs are not made by the operations before it", index);
    l->values[n->in[i]].uses++;
  }
  DEMAND(out && out->type == JSON_STRING && out->length && characters(out) <= MAX_NAME,
         "operation %d: bad name of its output", index);
  DEMAND(find_value(l, out) < 0, "operation %d: its output is made twice", index);

  DEMAND((n->kind != OP_AFFINE && n->kind != OP_CONV) || (tensor_name && tensor_name->type == JSON_STRING),
         "operation %d names no tensor", index);

  x = result = l->values[n->in[0]].shape;
  switch (n->kind) {
    case OP_AFFINE:
      min = binwrn_json_member(d, op, "min");
      n->has_min = min && min->type != JSON_NULL;
      if (n->has_min) {
        DEMAND((min->type == JSON_INTEGER || min->type == JSON_REAL) && fabs(min->real) <= 3e38,
               "operation %d: min is no number", index);
        n->min = (float)min->real;
      }
      TRY(need(l, tensor_name->text, tensor_name->length, ".scale", 1, 1, (uint64_t)x.channels, 0, 0, &n->scale));
      TRY(need(l, tensor_name->text, tensor_name->length, ".offset", 1, 1, (uint64_t)x.channels, 0, 0,
               &n->offset));
      break;
    case OP_CONV:
      TRY(slide(l, index, op, x, n, &result));
      DEMAND(binwrn_pair(d, binwrn_json_member(d, op, "channels"), 1, MAX_CHANNELS, channels) &&
                 channels[0] == x.channels,
             "operation %d: its channels do not fit its input", index);
      result.channels = channels[1];
      cost = (uint64_t)n->window[0] * (uint64_t)n->window[1] * (uint64_t)x.channels;
      n->row_bytes = (size_t)(cost + 7) / 8;
      field = binwrn_json_member(d, op, "coding");
      if (field)
        TRY(need_coded(l, index, tensor_name, field, n));
      else
        TRY(need(l, tensor_name->text, tensor_name->length, "", 0, 2, (uint64_t)channels[1], (cost + 7) / 8, 0,
                 &n->plain));
      break;
    case OP_AVERAGE_POOL:
    case OP_MAX_POOL:
      TRY(slide(l, index, op, x, n, &result));
      cost = (uint64_t)n->window[0] * (uint64_t)n->window[1];
      break;
    case OP_PAD:
      field = binwrn_json_member(d, op, "channels");
      DEMAND(binwrn_is_int(field, x.channels, MAX_CHANNELS), "operation %d: bad channels", index);
      result.channels = (int)field->integer;
      break;
    case OP_ADD: {
      const shape y = l->values[n->in[1]].shape;
      DEMAND(x.height == y.height && x.width == y.width && x.channels == y.channels,
             "operation %d: values of different shapes", index);
      break;
    }
    default: /* OP_MEAN */
      DEMAND(index + 1 == count, "operation %d is global_average, but not the last one", index);
      result.height = result.width = 1;
      break;
  }
  v->name = out;
  v->shape = result;
  n->out = l->value_count++;
  l->node_count++;
  *activations += elements(result);
  DEMAND(*activations <= MAX_ACTIVATIONS, "operation %d: too many activations", index);
  *work += elements(result) * cost; /* at most 2^27 * 2^28 */
  DEMAND(*work <= MAX_WORK, "operation %d: too many multiply-adds", index);
  return BINWRN_OK;
}

/* Coded kernels are there if the file says so, and all tensors are within the limit when they are decoded. */
static binwrn_error check_coded(loader *l) {
  const json_value *temperature = binwrn_json_member(&l->metadata, l->root, "temperature");
  uint64_t bytes = 0;
  int i, coded = 0;
  for (i = 0; i < l->tensor_count; i++)
    if (!l->tensors[i].is_coded) bytes += l->tensors[i].end - l->tensors[i].begin;
  for (i = 0; i < l->node_count; i++)
    if (l->nodes[i].coded) {
      bytes += (uint64_t)l->values[l->nodes[i].out].shape.channels * l->nodes[i].row_bytes;
      coded = 1;
      DEMAND(bytes <= MAX_DATA, "more than 256 MiB of tensors");
    }
  if (l->version == 1) return BINWRN_OK;
  DEMAND(coded == l->requires_entropy, "it requires 'entropy' and does not use it, or the reverse");
  DEMAND((temperature != NULL) == l->requires_temperature,
         "it requires 'temperature' and does not use it, or the reverse");
  DEMAND(!temperature || ((temperature->type == JSON_INTEGER || temperature->type == JSON_REAL) &&
                          temperature->real >= 0x1p-10 && temperature->real <= 0x1p10),
         "its temperature is no number from 2^-10 to 2^10");
  return BINWRN_OK;
}

binwrn_error binwrn_read_network(loader *l) {
  const json_document *d = &l->metadata;
  const json_value *input = binwrn_json_member(d, l->root, "input"),
                   *image = binwrn_json_member(d, input, "shape");
  const json_value *operations = binwrn_json_member(d, l->root, "operations"), *field, *op;
  const json_value *range;
  uint64_t activations, work = 0;
  int sides[3], limits[2], i = 0, count;
  shape s;
  DEMAND(image && image->type == JSON_ARRAY && image->count == 3, "the input's shape is not [H, W, C]");
  for (field = binwrn_json_first(d, image); field; field = binwrn_json_next(d, field)) {
    DEMAND(binwrn_is_int(field, 1, MAX_SIDE), "the input's shape is not [H, W, C]");
    sides[i++] = (int)field->integer;
  }
  DEMAND(binwrn_json_is_string(binwrn_json_member(d, input, "dtype"), "uint8"),
         "the input's dtype is not 'uint8'");
  range = binwrn_json_member(d, input, "range");
  DEMAND(binwrn_pair(d, range, 0, 255, limits) && limits[0] == 0 && limits[1] == 255,
         "the input's range is not [0, 255]");
  DEMAND(operations && operations->type == JSON_ARRAY && operations->count >= 1 &&
             operations->count <= MAX_OPERATIONS,
         "no list of 1 to %d operations", MAX_OPERATIONS);
  count = (int)operations->count;
  l->values = calloc((size_t)count + 1, sizeof *l->values);
  l->nodes = calloc((size_t)count, sizeof *l->nodes);
  if (!l->values || !l->nodes) return binwrn_no_memory(l);
  l->values[0].shape.height = sides[0];
  l->values[0].shape.width = sides[1];
  l->values[0].shape.channels = sides[2];
  l->value_count = 1;
  activations = elements(l->values[0].shape);
  for (i = 0, op = binwrn_json_first(d, operations); op; op = binwrn_json_next(d, op), i++)
    TRY(read_operation(l, i, count, op, &activations, &work));

  DEMAND(l->nodes[count - 1].kind == OP_MEAN, "the last operation is not global_average");
  s = l->values[l->value_count - 1].shape;
  DEMAND(s.channels == l->classes, "the operations end in %d logits, but there are %d classes", s.channels,
         l->classes);
  TRY(need(l, "golden", 6, ".image", 0, 3, (uint64_t)sides[0], (uint64_t)sides[1], (uint64_t)sides[2],
           &l->golden_image));
  TRY(need(l, "golden", 6, ".logits", 1, 1, (uint64_t)l->classes, 0, 0, &l->golden_logits));
  for (i = 0; i < l->tensor_count; i++)
    DEMAND(l->tensors[i].used, "tensor '%s' is used by no operation",
           binwrn_shorten(l->tensors[i].name, l->tensors[i].length).text);
  return check_coded(l);
}

/* Sets the bits of a convolution, decoded where the file has them coded. */
static binwrn_error find_bits(loader *l, node *n) {
  const uint32_t outputs = (uint32_t)l->values[n->out].shape.channels,
                 channels = (uint32_t)l->values[n->in[0]].shape.channels;
  const char *wrong;
  entropy_kernel *kernel;
  if (n->plain) {
    n->bits = l->data + n->plain->begin;
    return BINWRN_OK;
  }
  kernel = malloc(sizeof *kernel);
  if (!kernel) return binwrn_no_memory(l);
  wrong = binwrn_entropy_open(kernel, l->data + n->coded->begin, (size_t)(n->coded->end - n->coded->begin),
                              outputs, channels);
  if (!wrong) {
    n->bits = n->coded->decoded = malloc(outputs * n->row_bytes);
    if (n->bits) wrong = binwrn_entropy_decode(kernel, 0, kernel->streams, n->coded->decoded);
  }
  free(kernel);
  DEMAND(!wrong, "coded kernel '%s': %s", binwrn_shorten(n->coded->name, n->coded->length).text, wrong);
  return n->bits ? BINWRN_OK : binwrn_no_memory(l);
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
      const size_t rows = (size_t)l->values[n->out].shape.channels;
      const unsigned used =
          (unsigned)n->window[0] * (unsigned)n->window[1] * (unsigned)l->values[n->in[0]].shape.channels % 8;
      size_t row;
      TRY(find_bits(l, l->nodes + i));
      binwrn_sha256_update(&hash, n->bits, rows * n->row_bytes);
      for (row = 1; used && row <= rows; row++)
        DEMAND(n->bits[row * n->row_bytes - 1] >> used == 0, "operation %d: padding bits are set", i);
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
    for (at = t->begin; t->is_float && at < t->end; at += 4)
      DEMAND((binwrn_little_endian(l->data + at, 4) >> 23 & 255) != 255, "tensor '%s' is not finite",
             binwrn_shorten(t->name, t->length).text);
  }
  return BINWRN_OK;
}
