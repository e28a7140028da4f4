/* From the bytes of a packed file to a network that is ready to run. Every rule of docs/packed-format.md is
 * checked, with the limits of numpy_reader.py, before anything is allocated by what the file says. */
#define _POSIX_C_SOURCE 200809L

#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "internal.h"
#include "json.h"
#include "sha256.h"

#define MAX_HEADER (16u << 20)
#define MAX_DATA (256 << 20)
#define MAX_OPERATIONS 4096
#define MAX_SIDE 4096
#define MAX_CHANNELS 65536
#define MAX_WINDOW 64
#define MAX_ACTIVATIONS ((uint64_t)1 << 27)
#define MAX_WORK ((uint64_t)1 << 38)
#define MAX_NAME 64 /* code points in the name of a value */
#define DEFAULT_MEMORY ((uint64_t)2 << 30)

typedef struct {
  const char *name;
  size_t length;
  int is_float, dimensions, used;
  uint64_t shape[3], begin, end;
} tensor;

/* A value that operations name. */
typedef struct {
  const json_value *name;
  shape shape;
  int uses;       /* as an input */
  int maker;      /* node that makes it */
  int last;       /* node that reads it last */
  int64_t offset; /* floats, in the arena; -1: not placed */
  uint64_t size;  /* floats */
} value;

/* An operation as read; some of them become part of others. */
typedef struct {
  op_kind kind;
  int in[2], out; /* values; in[1] is -1 where there is only one */
  int fused;      /* nothing is left of it */
  int add;        /* of a convolution: value that is added to its result, or -1 */
  int window[2], stride[2], pads[2][2];
  const tensor *bits, *scale, *offset;
  float min;
  int has_min;
} node;

typedef struct {
  const unsigned char *data; /* of the tensors */
  json_document header, metadata;
  const json_value *root; /* the object called binwrn */
  tensor *tensors;
  int tensor_count;
  value *values;
  int value_count;
  node *nodes;
  int node_count;
  int classes;
  const tensor *golden_image, *golden_logits;
  char *message;
} loader;

/* --- small helpers -------------------------------------------------------------------------------------- */

static binwrn_error complain(char *message, binwrn_error error, const char *format, ...) {
  if (message) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, BINWRN_MESSAGE, format, arguments);
    va_end(arguments);
  }
  return error;
}

#define DEMAND(condition, ...) \
  do { \
    if (!(condition)) return complain(l->message, BINWRN_ERROR_FORMAT, __VA_ARGS__); \
  } while (0)
#define TRY(call) \
  do { \
    binwrn_error try_error = (call); \
    if (try_error != BINWRN_OK) return try_error; \
  } while (0)

static binwrn_error no_memory(loader *l) {
  return complain(l->message, BINWRN_ERROR_MEMORY, "not enough memory");
}

/* The start of a string of the file as it may stand in a message. */
typedef struct {
  char text[41];
} brief;

static brief shorten(const char *text, size_t length) {
  brief b;
  size_t i, n = length < sizeof b.text - 1 ? length : sizeof b.text - 1;
  for (i = 0; i < n; i++) b.text[i] = (char)(text[i] < 0x20 || text[i] > 0x7e ? '?' : text[i]);
  b.text[n] = 0;
  return b;
}

static int is_int(const json_value *v, int64_t low, int64_t high) {
  return v && v->type == JSON_INTEGER && v->integer >= low && v->integer <= high;
}

/* An array of exactly two integers within the limits. */
static int pair(const json_document *d, const json_value *v, int64_t low, int64_t high, int out[2]) {
  const json_value *a, *b;
  if (!v || v->type != JSON_ARRAY || v->count != 2) return 0;
  a = json_first(d, v);
  b = json_next(d, a);
  if (!is_int(a, low, high) || !is_int(b, low, high)) return 0;
  out[0] = (int)a->integer;
  out[1] = (int)b->integer;
  return 1;
}

static uint64_t little_endian(const unsigned char *bytes, int count) {
  uint64_t result = 0;
  while (count--) result = result << 8 | bytes[count];
  return result;
}

static float read_float(const unsigned char *bytes) {
  uint32_t bits = (uint32_t)little_endian(bytes, 4);
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

static uint64_t elements(shape s) { return (uint64_t)s.height * (uint64_t)s.width * (uint64_t)s.channels; }

/* Memory of the model: counted, limited, aligned, set to 0, freed with it. */
static void *take(binwrn_model *model, uint64_t size) {
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

/* --- the container -------------------------------------------------------------------------------------- */

static int by_begin(const void *a, const void *b) {
  const tensor *x = a, *y = b;
  return (x->begin > y->begin) - (x->begin < y->begin);
}

static int compare_text(const char *a, size_t a_length, const char *b, size_t b_length) {
  int order = memcmp(a, b, a_length < b_length ? a_length : b_length);
  return order ? order : (a_length > b_length) - (a_length < b_length);
}

static int by_name(const void *a, const void *b) {
  const tensor *x = a, *y = b;
  return compare_text(x->name, x->length, y->name, y->length);
}

/* The tensor called name + suffix, or NULL. */
static tensor *find_tensor(const loader *l, const char *name, size_t length, const char *suffix) {
  int low = 0, high = l->tensor_count;
  const size_t more = strlen(suffix);
  while (low < high) {
    int middle = low + (high - low) / 2, order;
    tensor *t = &l->tensors[middle];
    size_t head = t->length < length ? t->length : length;
    order = memcmp(t->name, name, head);
    if (!order && t->length < length) order = -1;
    if (!order) order = compare_text(t->name + length, t->length - length, suffix, more);
    if (!order) return t;
    if (order < 0)
      low = middle + 1;
    else
      high = middle;
  }
  return NULL;
}

static binwrn_error read_entry(loader *l, const json_value *name, const json_value *entry, tensor *t) {
  const json_document *d = &l->header;
  const json_value *dtype = json_member(d, entry, "dtype"), *dimensions = json_member(d, entry, "shape"), *v;
  const brief b = shorten(name->text, name->length);
  uint64_t count = 1;
  int offsets[2];
  DEMAND(entry->type == JSON_OBJECT && entry->count == 3 && dtype && dimensions, "bad tensor entry '%s'", b.text);
  t->name = name->text;
  t->length = name->length;
  t->is_float = json_is_string(dtype, "F32");
  DEMAND(t->is_float || json_is_string(dtype, "U8"), "tensor '%s' has a dtype that is not U8 or F32", b.text);
  DEMAND(dimensions->type == JSON_ARRAY && dimensions->count <= 3, "tensor '%s' has a bad shape", b.text);
  for (v = json_first(d, dimensions); v; v = json_next(d, v)) {
    DEMAND(is_int(v, 1, MAX_DATA), "tensor '%s' has a bad shape", b.text);
    t->shape[t->dimensions++] = (uint64_t)v->integer;
    count *= (uint64_t)v->integer; /* below 2^58 */
    DEMAND(count <= MAX_DATA, "tensor '%s' is too large", b.text);
  }
  DEMAND(pair(d, json_member(d, entry, "data_offsets"), 0, MAX_DATA, offsets), "tensor '%s' has bad offsets",
         b.text);
  t->begin = (uint64_t)offsets[0];
  t->end = (uint64_t)offsets[1];
  DEMAND(t->end >= t->begin && t->end - t->begin == count * (t->is_float ? 4 : 1),
         "tensor '%s': its shape does not fit its bytes", b.text);
  DEMAND(!t->is_float || t->begin % 4 == 0, "tensor '%s' is not aligned", b.text);
  return BINWRN_OK;
}

static binwrn_error parsed(loader *l, json_result result, const json_document *d, const char *what) {
  if (result == JSON_NO_MEMORY) return no_memory(l);
  DEMAND(result == JSON_OK, "%s is not valid JSON", what);
  DEMAND(d->values[0].type == JSON_OBJECT, "%s is not a JSON object", what);
  return BINWRN_OK;
}

/* text: the header, which is changed, as strings are unescaped in it. data_size: bytes that follow it. */
static binwrn_error read_container(loader *l, char *text, size_t length, uint64_t data_size) {
  const json_document *d = &l->header;
  const json_value *outer, *binwrn, *name, *version;
  uint64_t position = 0;
  int i;
  DEMAND(length && text[0] == '{', "not a packed model: no header of a safetensors file");
  TRY(parsed(l, json_parse(&l->header, text, length), d, "the header"));
  outer = json_member(d, &d->values[0], "__metadata__");
  binwrn = json_member(d, outer, "binwrn");
  DEMAND(binwrn && binwrn->type == JSON_STRING,
         "a safetensors file, but no packed model: it has no metadata called 'binwrn'");
  l->tensors = calloc(d->values[0].count, sizeof *l->tensors);
  if (!l->tensors) return no_memory(l);
  for (name = json_first(d, &d->values[0]); name; name = json_next(d, json_next(d, name)))
    if (!json_is_string(name, "__metadata__"))
      TRY(read_entry(l, name, json_next(d, name), &l->tensors[l->tensor_count++]));

  TRY(parsed(l, json_parse(&l->metadata, binwrn->text, binwrn->length), &l->metadata,
             "the metadata 'binwrn'"));
  l->root = &l->metadata.values[0];
  DEMAND(json_is_string(json_member(&l->metadata, l->root, "format"), "binwrn-packed"),
         "its format is not 'binwrn-packed'");
  version = json_member(&l->metadata, l->root, "version");
  DEMAND(is_int(version, 1, INT32_MAX), "its version is no version number");
  if (version->integer != 1)
    return complain(l->message, BINWRN_ERROR_VERSION, "version %d, but this program reads version 1: update it",
                    (int)version->integer);
  DEMAND((8 + length) % 8 == 0, "the tensors do not begin at a multiple of 8 bytes");

  qsort(l->tensors, (size_t)l->tensor_count, sizeof *l->tensors, by_begin);
  for (i = 0; i < l->tensor_count; i++) {
    DEMAND(l->tensors[i].begin == position, "gap or overlap before the bytes of tensor '%s'",
           shorten(l->tensors[i].name, l->tensors[i].length).text);
    position = l->tensors[i].end;
  }
  DEMAND(position == data_size, "the file has not the size that its header announces: truncated or damaged");
  qsort(l->tensors, (size_t)l->tensor_count, sizeof *l->tensors, by_name);
  return BINWRN_OK;
}

/* --- the operations ------------------------------------------------------------------------------------- */

static const struct {
  const char *name;
  op_kind kind;
  const char *fields[6];
} OPERATIONS[] = {
    {"affine", OP_AFFINE, {"tensor", "min", NULL}},
    {"conv", OP_CONV, {"tensor", "window", "stride", "pads", "channels", NULL}},
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
                          : json_is_string(name, "image"))
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
  tensor *t = find_tensor(l, name, length, suffix);
  const uint64_t wanted[3] = {a, b, c};
  const brief text = shorten(name, length);
  int i;
  DEMAND(t, "tensor '%s%s' is missing", text.text, suffix);
  DEMAND(!t->used, "tensor '%s%s' is used twice", text.text, suffix);
  DEMAND(t->is_float == is_float && t->dimensions == dimensions, "tensor '%s%s' has another dtype or shape",
         text.text, suffix);
  for (i = 0; i < dimensions; i++)
    DEMAND(t->shape[i] == wanted[i], "tensor '%s%s' does not fit its operation", text.text, suffix);
  t->used = 1;
  *result = t;
  return BINWRN_OK;
}

static binwrn_error slide(loader *l, int index, const json_value *op, shape in, node *n, shape *out) {
  const json_document *d = &l->metadata;
  const json_value *pads = json_member(d, op, "pads");
  int side[2], result[2], i;
  DEMAND(pair(d, json_member(d, op, "window"), 1, MAX_WINDOW, n->window), "operation %d: bad window", index);
  DEMAND(pair(d, json_member(d, op, "stride"), 1, MAX_WINDOW, n->stride), "operation %d: bad stride", index);
  DEMAND(pads && pads->type == JSON_ARRAY && pads->count == 2 &&
             pair(d, json_first(d, pads), 0, n->window[0] - 1, n->pads[0]) &&
             pair(d, json_next(d, json_first(d, pads)), 0, n->window[1] - 1, n->pads[1]),
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
  const json_value *kind = json_member(d, op, "op"), *inputs = json_member(d, op, "in"),
                   *out = json_member(d, op, "out"),
                   *tensor_name = json_member(d, op, "tensor"), *field, *min;
  node *n = &l->nodes[l->node_count];
  value *v = &l->values[l->value_count];
  uint64_t cost = 1;
  size_t k, f;
  int wanted, channels[2], i;
  shape x, result;
  DEMAND(op->type == JSON_OBJECT, "operation %d is not an object", index);
  for (k = 0; k < sizeof OPERATIONS / sizeof *OPERATIONS; k++)
    if (json_is_string(kind, OPERATIONS[k].name)) break;
  DEMAND(k < sizeof OPERATIONS / sizeof *OPERATIONS, "operation %d: unknown op", index);
  n->kind = OPERATIONS[k].kind;
  for (field = json_first(d, op); field; field = json_next(d, json_next(d, field))) {
    int known = json_is_string(field, "op") || json_is_string(field, "in") || json_is_string(field, "out");
    for (f = 0; !known && OPERATIONS[k].fields[f]; f++) known = json_is_string(field, OPERATIONS[k].fields[f]);
    DEMAND(known, "operation %d (%s): unknown field '%s'", index, OPERATIONS[k].name,
           shorten(field->text, field->length).text);
  }
  wanted = n->kind == OP_ADD ? 2 : 1;
  DEMAND(inputs && inputs->type == JSON_ARRAY && (int64_t)inputs->count == wanted,
         "operation %d has not %d inputs", index, wanted);
  n->in[1] = n->add = -1;
  field = json_first(d, inputs);
  for (i = 0; i < wanted; i++, field = json_next(d, field)) {
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
      min = json_member(d, op, "min");
      n->has_min = min && min->type != JSON_NULL;
      if (n->has_min) {
        DEMAND((min->type == JSON_INTEGER || min->type == JSON_REAL) && fabs(min->real) <= 3e38,
               "operation %d: min is no number", index);
        n->min = (float)min->real;
      }
      TRY(need(l, tensor_name->text, tensor_name->length, ".scale", 1, 1, (uint64_t)x.channels, 0, 0, &n->scale));
      TRY(need(l, tensor_name->text, tensor_name->length, ".offset", 1, 1, (uint64_t)x.channels, 0, 0, &n->offset));
      break;
    case OP_CONV:
      TRY(slide(l, index, op, x, n, &result));
      DEMAND(pair(d, json_member(d, op, "channels"), 1, MAX_CHANNELS, channels) && channels[0] == x.channels,
             "operation %d: its channels do not fit its input", index);
      result.channels = channels[1];
      cost = (uint64_t)n->window[0] * (uint64_t)n->window[1] * (uint64_t)x.channels;
      TRY(need(l, tensor_name->text, tensor_name->length, "", 0, 2, (uint64_t)channels[1], (cost + 7) / 8, 0, &n->bits));
      break;
    case OP_AVERAGE_POOL:
    case OP_MAX_POOL:
      TRY(slide(l, index, op, x, n, &result));
      cost = (uint64_t)n->window[0] * (uint64_t)n->window[1];
      break;
    case OP_PAD:
      field = json_member(d, op, "channels");
      DEMAND(is_int(field, x.channels, MAX_CHANNELS), "operation %d: bad channels", index);
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

static binwrn_error read_network(loader *l) {
  const json_document *d = &l->metadata;
  const json_value *input = json_member(d, l->root, "input"), *image = json_member(d, input, "shape");
  const json_value *operations = json_member(d, l->root, "operations"), *field, *op;
  const json_value *names = json_member(d, l->root, "class_names"), *range;
  uint64_t activations, work = 0;
  int sides[3], limits[2], i = 0, count;
  shape s;
  DEMAND(image && image->type == JSON_ARRAY && image->count == 3, "the input's shape is not [H, W, C]");
  for (field = json_first(d, image); field; field = json_next(d, field)) {
    DEMAND(is_int(field, 1, MAX_SIDE), "the input's shape is not [H, W, C]");
    sides[i++] = (int)field->integer;
  }
  DEMAND(json_is_string(json_member(d, input, "dtype"), "uint8"), "the input's dtype is not 'uint8'");
  range = json_member(d, input, "range");
  DEMAND(pair(d, range, 0, 255, limits) && limits[0] == 0 && limits[1] == 255,
         "the input's range is not [0, 255]");
  DEMAND(operations && operations->type == JSON_ARRAY && operations->count >= 1 &&
             operations->count <= MAX_OPERATIONS,
         "no list of 1 to %d operations", MAX_OPERATIONS);
  count = (int)operations->count;
  l->values = calloc((size_t)count + 1, sizeof *l->values);
  l->nodes = calloc((size_t)count, sizeof *l->nodes);
  if (!l->values || !l->nodes) return no_memory(l);
  l->values[0].shape.height = sides[0];
  l->values[0].shape.width = sides[1];
  l->values[0].shape.channels = sides[2];
  l->value_count = 1;
  activations = elements(l->values[0].shape);
  for (i = 0, op = json_first(d, operations); op; op = json_next(d, op), i++)
    TRY(read_operation(l, i, count, op, &activations, &work));

  DEMAND(l->nodes[count - 1].kind == OP_MEAN, "the last operation is not global_average");
  field = json_member(d, l->root, "num_classes");
  DEMAND(is_int(field, 1, MAX_CHANNELS), "num_classes is no number of classes");
  l->classes = (int)field->integer;
  s = l->values[l->value_count - 1].shape;
  DEMAND(s.channels == l->classes, "the operations end in %d logits, but there are %d classes", s.channels,
         l->classes);
  DEMAND(names && names->type == JSON_ARRAY && (names->count == 0 || (int64_t)names->count == l->classes),
         "class_names are not %d strings, nor an empty list", l->classes);
  for (field = json_first(d, names); field; field = json_next(d, field))
    DEMAND(field->type == JSON_STRING, "class_names are not strings");
  TRY(need(l, "golden", 6, ".image", 0, 3, (uint64_t)sides[0], (uint64_t)sides[1], (uint64_t)sides[2],
           &l->golden_image));
  TRY(need(l, "golden", 6, ".logits", 1, 1, (uint64_t)l->classes, 0, 0, &l->golden_logits));
  for (i = 0; i < l->tensor_count; i++)
    DEMAND(l->tensors[i].used, "tensor '%s' is used by no operation",
           shorten(l->tensors[i].name, l->tensors[i].length).text);
  return BINWRN_OK;
}

static binwrn_error check_tensors(loader *l) {
  const json_value *stated = json_member(&l->metadata, l->root, "sha256");
  static const char digits[] = "0123456789abcdef";
  unsigned char digest[32];
  char hex[65];
  sha256 hash;
  int i;
  sha256_start(&hash);
  for (i = 0; i < l->node_count; i++) {
    const node *n = &l->nodes[i];
    if (n->kind == OP_CONV) {
      const unsigned char *bits = l->data + n->bits->begin;
      const unsigned used = (unsigned)n->window[0] * (unsigned)n->window[1] *
                            (unsigned)l->values[n->in[0]].shape.channels % 8;
      uint64_t row;
      sha256_update(&hash, bits, (size_t)(n->bits->end - n->bits->begin));
      for (row = 1; used && row <= n->bits->shape[0]; row++)
        DEMAND(bits[row * n->bits->shape[1] - 1] >> used == 0, "operation %d: padding bits are set", i);
    }
  }
  sha256_finish(&hash, digest);
  for (i = 0; i < 64; i++) hex[i] = digits[digest[i / 2] >> (i % 2 ? 0 : 4) & 15];
  hex[64] = 0;
#ifndef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION /* a fuzzer does not find checksums */
  DEMAND(json_is_string(stated, hex), "the bits do not have the checksum stated");
#else
  (void)stated;
#endif
  for (i = 0; i < l->tensor_count; i++) {
    const tensor *t = &l->tensors[i];
    uint64_t at;
    for (at = t->begin; t->is_float && at < t->end; at += 4)
      DEMAND((little_endian(l->data + at, 4) >> 23 & 255) != 255, "tensor '%s' is not finite",
             shorten(t->name, t->length).text);
  }
  return BINWRN_OK;
}

/* --- the plan ------------------------------------------------------------------------------------------- */

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
      for (k = 0; live[k] != reuse; k++) {}
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
static void arrange(const node *n, const unsigned char *bits, const operation *op, const kernel *k) {
  const conv_plan *plan = &op->conv;
  const size_t row_bytes = (size_t)n->bits->shape[1], lanes = (size_t)k->lanes;
  const int channels = op->in.channels;
  uint32_t codes[MAX_STAGE][1 << MAX_GROUP]; /* of each slot and all bits of a group */
  unsigned b;
  int o, t, g, slot;
  for (slot = 0; slot < k->slots; slot++)
    for (b = 0; b < 1u << k->group; b++) codes[slot][b] = k->code(b, slot);
  for (o = 0; o < op->out.channels; o++) {
    const unsigned char *row = bits + (size_t)o * row_bytes;
    uint32_t *block = plan->words + (size_t)(o / k->lanes) * (size_t)plan->chunks *
                                        (size_t)plan->tap_count * lanes + (size_t)(o % k->lanes);
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

static const float *copy_floats(loader *l, binwrn_model *model, const tensor *t) {
  const size_t count = (size_t)(t->end - t->begin) / 4;
  float *result = take(model, count * sizeof *result);
  size_t i;
  for (i = 0; result && i < count; i++) result[i] = read_float(l->data + t->begin + 4 * i);
  return result;
}

static binwrn_error prepare(loader *l, binwrn_model *model) {
  const kernel *k = model->kernel;
  binwrn_description *d = &model->description;
  const int64_t arena = place(l);
  uint64_t tables = 0, sums = 0;
  int i;
  if (arena < 0) return no_memory(l);
  d->arena_bytes = (uint64_t)arena * sizeof(float);
  model->arena = take(model, d->arena_bytes);
  model->operations = take(model, ((uint64_t)l->node_count + 1) * sizeof *model->operations);
  if (!model->arena || !model->operations) return no_memory(l);
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
      op->affine.scale = copy_floats(l, model, n->scale);
      op->affine.offset = copy_floats(l, model, n->offset);
      if (!op->affine.scale || !op->affine.offset) return no_memory(l);
      op->affine.min = n->has_min ? n->min : -INFINITY;
    }
    if (n->kind == OP_CONV) {
      uint64_t words, table, sum;
      op->conv.taps = take(model, (uint64_t)n->window[0] * (uint64_t)n->window[1] * sizeof *op->conv.taps);
      if (!op->conv.taps || !binwrn_plan_conv(op, k, d->threads)) return no_memory(l);
      words = (uint64_t)op->conv.blocks * (uint64_t)op->conv.chunks * (uint64_t)op->conv.tap_count *
              (uint64_t)k->lanes; /* at most 2^13 * 2^14 * 2^12 * 2^4 */
      op->conv.words = take(model, words * sizeof *op->conv.words);
      if (!op->conv.words) return no_memory(l);
      arrange(n, l->data + n->bits->begin, op, k);
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
  model->scratch = take(model, d->scratch_bytes);
  return model->scratch ? BINWRN_OK : no_memory(l);
}

static binwrn_error describe(loader *l, binwrn_model *model) {
  binwrn_description *d = &model->description;
  const json_document *metadata = &l->metadata;
  const json_value *names = json_member(metadata, l->root, "class_names"), *name;
  const size_t image = (size_t)(l->golden_image->end - l->golden_image->begin);
  uint8_t *golden;
  d->height = l->values[0].shape.height;
  d->width = l->values[0].shape.width;
  d->channels = l->values[0].shape.channels;
  d->classes = l->classes;
  if (names->count) {
    uint64_t size = 0;
    char **list, *text;
    for (name = json_first(metadata, names); name; name = json_next(metadata, name)) size += name->length + 1;
    list = take(model, names->count * sizeof *list);
    text = take(model, size);
    if (!list || !text) return no_memory(l);
    d->class_names = (const char *const *)list;
    for (name = json_first(metadata, names); name; name = json_next(metadata, name)) {
      memcpy(text, name->text, name->length);
      *list++ = text;
      text += name->length + 1;
    }
  }
  golden = take(model, image);
  if (!golden) return no_memory(l);
  memcpy(golden, l->data + l->golden_image->begin, image);
  d->golden_image = golden;
  d->golden_logits = copy_floats(l, model, l->golden_logits);
  return d->golden_logits ? BINWRN_OK : no_memory(l);
}

/* --- the interface -------------------------------------------------------------------------------------- */

/* header: `length` bytes that may be changed. */
static binwrn_error load_parts(char *header, size_t length, const unsigned char *data, uint64_t data_size,
                               const binwrn_options *options, binwrn_model **result, char *message) {
  binwrn_model *model = calloc(1, sizeof *model);
  loader loader_, *l = &loader_;
  binwrn_error error;
  memset(l, 0, sizeof *l);
  l->data = data;
  l->message = message;
  if (!model) return no_memory(l);
  model->max_memory = options && options->max_memory ? options->max_memory : DEFAULT_MEMORY;
  model->description.threads = options && options->threads ? options->threads : 1;
  model->kernel = binwrn_choose_kernel(options ? options->kernel : NULL);
  error = BINWRN_OK;
  if (model->description.threads < 1 || model->description.threads > BINWRN_MAX_THREADS)
    error = complain(message, BINWRN_ERROR_ARGUMENT, "%d threads: it must be 1 to %d",
                     model->description.threads, BINWRN_MAX_THREADS);
  else if (!model->kernel)
    error = complain(message, BINWRN_ERROR_ARGUMENT, "there is no kernel '%s' for this processor",
                     shorten(options->kernel, strlen(options->kernel)).text);
  if (!error) error = read_container(l, header, length, data_size);
  if (!error) error = read_network(l);
  if (!error) error = check_tensors(l);
  if (!error) {
    fuse(l);
    model->description.kernel = model->kernel->name;
    error = prepare(l, model);
  }
  if (!error) error = describe(l, model);
  json_free(&l->header);
  json_free(&l->metadata);
  free(l->tensors);
  free(l->values);
  free(l->nodes);
  if (!error) {
    model->description.total_bytes = model->bytes + sizeof *model;
    model->pool = binwrn_pool_new(model, model->description.threads);
    if (!model->pool)
      error = complain(message, BINWRN_ERROR_THREADS, "the system does not start %d threads",
                       model->description.threads);
  }
  if (error) {
    binwrn_free(model);
    return error;
  }
  *result = model;
  return BINWRN_OK;
}

/* The length of the header of a file of that size. */
static binwrn_error header_length(const unsigned char *start, uint64_t size, size_t *length, char *message) {
  uint64_t stated;
  if (size < 8) return complain(message, BINWRN_ERROR_FORMAT, "not a packed model: only %d bytes long", (int)size);
  stated = little_endian(start, 8);
  if (stated > MAX_HEADER)
    return complain(message, BINWRN_ERROR_FORMAT, "not a packed model: no header of a safetensors file");
  if (stated > size - 8)
    return complain(message, BINWRN_ERROR_FORMAT, "truncated: a header of %d bytes is not all there", (int)stated);
  *length = (size_t)stated;
  return BINWRN_OK;
}

binwrn_error binwrn_load_memory(const void *data, size_t size, const binwrn_options *options,
                                binwrn_model **model, char *message) {
  const unsigned char *bytes = data;
  binwrn_error error;
  size_t length = 0;
  char *header;
  if (!model) return complain(message, BINWRN_ERROR_ARGUMENT, "no place for the model");
  *model = NULL;
  if (!data) return complain(message, BINWRN_ERROR_ARGUMENT, "no data");
  TRY(header_length(bytes, size, &length, message));
  header = malloc(length + 1);
  if (!header) return complain(message, BINWRN_ERROR_MEMORY, "not enough memory");
  memcpy(header, bytes + 8, length);
  error = load_parts(header, length, bytes + 8 + length, size - 8 - length, options, model, message);
  free(header);
  return error;
}

binwrn_error binwrn_load_file(const char *path, const binwrn_options *options, binwrn_model **model,
                              char *message) {
  struct stat status;
  unsigned char *bytes = NULL;
  binwrn_error error = BINWRN_OK;
  size_t size = 0, length = 0;
  FILE *file;
  if (!model) return complain(message, BINWRN_ERROR_ARGUMENT, "no place for the model");
  *model = NULL;
  if (!path) return complain(message, BINWRN_ERROR_ARGUMENT, "no path");
  if (stat(path, &status) != 0) return complain(message, BINWRN_ERROR_IO, "the file cannot be read");
  if (!S_ISREG(status.st_mode)) return complain(message, BINWRN_ERROR_FORMAT, "not a regular file");
  if (status.st_size < 0 || (uint64_t)status.st_size > (uint64_t)MAX_HEADER + MAX_DATA + 8)
    return complain(message, BINWRN_ERROR_FORMAT, "not a packed model: too large");
  file = fopen(path, "rb");
  if (!file) return complain(message, BINWRN_ERROR_IO, "the file cannot be read");
  size = (size_t)status.st_size;
  bytes = malloc(size + 1);
  if (!bytes)
    error = complain(message, BINWRN_ERROR_MEMORY, "not enough memory");
  else if (fread(bytes, 1, size, file) != size)
    error = complain(message, BINWRN_ERROR_IO, "the file cannot be read to its end");
  fclose(file);
  if (!error) error = header_length(bytes, size, &length, message);
  if (!error)
    error = load_parts((char *)bytes + 8, length, bytes + 8 + length, size - 8 - length, options, model, message);
  free(bytes);
  return error;
}

const binwrn_description *binwrn_describe(const binwrn_model *model) {
  return model ? &model->description : NULL;
}

void binwrn_free(binwrn_model *model) {
  size_t i;
  if (!model) return;
  binwrn_pool_free(model->pool);
  for (i = 0; i < model->block_count; i++) free(model->blocks[i]);
  free(model->blocks);
  free(model);
}

const char *binwrn_error_name(binwrn_error error) {
  switch (error) {
    case BINWRN_OK: return "no error";
    case BINWRN_ERROR_IO: return "the file cannot be read";
    case BINWRN_ERROR_FORMAT: return "not a valid packed model";
    case BINWRN_ERROR_VERSION: return "a newer version of the format";
    case BINWRN_ERROR_MEMORY: return "not enough memory";
    case BINWRN_ERROR_ARGUMENT: return "a wrong argument";
    case BINWRN_ERROR_THREADS: return "threads cannot be started";
  }
  return "unknown error";
}
