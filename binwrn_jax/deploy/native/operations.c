/* The operations of a network, each checked by a function of its kind. */
#include <math.h>
#include <string.h>

#include "loader.h"

#define MAX_WINDOW 64 /* strides, dilations and factors of resizing too */
#define MAX_INPUTS 256
#define MAX_CONSTANT 3e38 /* magnitude of a limit or of a constant */
#define MAX_SLOPE 1000
#define MAX_ACTIVATIONS ((uint64_t)1 << 27)
#define MAX_WORK ((uint64_t)1 << 38)
#define MAX_NAME 64 /* code points in the name of a value */

/* --- tensors -------------------------------------------------------------------------------------------- */

binwrn_error binwrn_need(loader *l, const char *name, size_t length, const char *suffix, tensor_dtype dtype,
                         int dimensions, const uint64_t *wanted, const tensor **result) {
  tensor *t = binwrn_find_tensor(l, name, length, suffix);
  const brief text = binwrn_shorten(name, length);
  int i;
  DEMAND(t, "tensor '%s%s' is missing", text.text, suffix);
  DEMAND(!t->used, "tensor '%s%s' is used twice", text.text, suffix);
  DEMAND(t->dtype == dtype && t->dimensions == dimensions, "tensor '%s%s' has another dtype or shape", text.text,
         suffix);
  for (i = 0; wanted && i < dimensions; i++)
    DEMAND(t->shape[i] == wanted[i], "tensor '%s%s' does not fit its operation", text.text, suffix);
  t->used = 1;
  *result = t;
  return BINWRN_OK;
}

binwrn_error binwrn_need_named(reading *r, const char *suffix, tensor_dtype dtype, int dimensions,
                               const uint64_t *wanted, const tensor **result) {
  loader *l = r->l;
  const json_value *name = binwrn_field(r, "tensor");
  DEMAND(name && name->type == JSON_STRING, "operation %d names no tensor", r->index);
  return binwrn_need(l, name->text, name->length, suffix, dtype, dimensions, wanted, result);
}

/* --- fields --------------------------------------------------------------------------------------------- */

/* An array of two pairs of integers, from 0 to most[0] and most[1]. */
static int read_pads(const reading *r, const int most[2], int pads[2][2]) {
  const json_document *d = &r->l->metadata;
  const json_value *v = binwrn_field(r, "pads"), *first;
  if (!v || v->type != JSON_ARRAY || v->count != 2) return 0;
  first = binwrn_json_first(d, v);
  return binwrn_pair(d, first, 0, most[0], pads[0]) && binwrn_pair(d, binwrn_json_next(d, first), 0, most[1], pads[1]);
}

/* Height and width of what a window sliding over an image gives. */
static binwrn_error slide(reading *r) {
  loader *l = r->l;
  const json_document *d = &l->metadata;
  const json_value *dilation = binwrn_field(r, "dilation");
  node *n = r->n;
  const int side[2] = {r->in.height, r->in.width};
  int covers[2], most[2], result[2], i;
  DEMAND(binwrn_pair(d, binwrn_field(r, "window"), 1, MAX_WINDOW, n->window), "operation %d: bad window", r->index);
  DEMAND(binwrn_pair(d, binwrn_field(r, "stride"), 1, MAX_WINDOW, n->stride), "operation %d: bad stride", r->index);
  DEMAND(!dilation || (binwrn_pair(d, dilation, 1, MAX_WINDOW, n->dilation) &&
                       (n->dilation[0] > 1 || n->dilation[1] > 1)),
         "operation %d: bad dilation", r->index);
  for (i = 0; i < 2; i++) {
    covers[i] = (n->window[i] - 1) * n->dilation[i] + 1;
    most[i] = covers[i] - 1;
  }
  DEMAND(read_pads(r, most, n->pads), "operation %d: bad pads", r->index);
  for (i = 0; i < 2; i++) {
    const int room = side[i] + n->pads[i][0] + n->pads[i][1] - covers[i];
    DEMAND(room >= 0, "operation %d: its window does not fit into the image", r->index);
    result[i] = room / n->stride[i] + 1;
  }
  r->out.height = result[0], r->out.width = result[1];
  return BINWRN_OK;
}

/* --- the operations ------------------------------------------------------------------------------------- */

static binwrn_error check_affine(reading *r) {
  loader *l = r->l;
  const json_value *min = binwrn_field(r, "min"), *max = binwrn_field(r, "max");
  const uint64_t channels = (uint64_t)r->in.channels;
  node_affine *a = &r->n->affine;
  if (min && min->type != JSON_NULL) {
    DEMAND(binwrn_is_number(min, MAX_CONSTANT), "operation %d: min is no number", r->index);
    a->min = (float)min->real;
  }
  if (max) {
    DEMAND(binwrn_is_number(max, MAX_CONSTANT), "operation %d: max is no number", r->index);
    a->max = (float)max->real;
    DEMAND(a->min <= a->max, "operation %d: min above max", r->index);
  }
  TRY(binwrn_need_named(r, ".scale", DTYPE_F32, 1, &channels, &a->scale));
  return binwrn_need_named(r, ".offset", DTYPE_F32, 1, &channels, &a->offset);
}

static binwrn_error check_conv(reading *r) {
  loader *l = r->l;
  const json_value *group = binwrn_field(r, "groups"), *weights = binwrn_field(r, "weights"), *coding = binwrn_field(r, "coding");
  node *n = r->n;
  uint64_t wanted[4];
  const tensor *coded;
  int channels[2];
  TRY(slide(r));
  DEMAND(binwrn_pair(&l->metadata, binwrn_field(r, "channels"), 1, MAX_CHANNELS, channels) && channels[0] == r->in.channels,
         "operation %d: its channels do not fit its input", r->index);
  if (group) {
    DEMAND(binwrn_is_int(group, 2, MAX_CHANNELS) && channels[0] % group->integer == 0 &&
               channels[1] % group->integer == 0,
           "operation %d: bad groups", r->index);
    n->groups = (int)group->integer;
  }
  r->out.channels = channels[1];
  wanted[0] = (uint64_t)channels[1];
  wanted[1] = (uint64_t)n->window[0], wanted[2] = (uint64_t)n->window[1];
  wanted[3] = (uint64_t)(channels[0] / n->groups);
  r->cost = wanted[1] * wanted[2] * wanted[3];
  if (weights) {
    const int is_int8 = binwrn_json_is_string(weights, "int8");
    DEMAND(is_int8 || binwrn_json_is_string(weights, "float32"),
           "operation %d: its weights are neither 'float32' nor 'int8'", r->index);
    DEMAND(is_int8 == ((l->required & FEATURE_INT8) != 0), "operation %d: weights of another kind of network", r->index);
    DEMAND(!coding, "operation %d: coding of weights that are no bits", r->index);
    n->row_bytes = (size_t)r->cost * (is_int8 ? 1 : 4);
    return binwrn_need_named(r, "", is_int8 ? DTYPE_I8 : DTYPE_F32, 4, wanted, &n->floats);
  }
  n->row_bytes = (size_t)(r->cost + 7) / 8;
  if (coding) {
    DEMAND(binwrn_json_is_string(coding, "rans"), "operation %d: its coding is not 'rans'", r->index);
    DEMAND(n->window[0] == 3 && n->window[1] == 3, "operation %d: a coded kernel that is not of 3 x 3", r->index);
    TRY(binwrn_need_named(r, ".coded", DTYPE_U16, 1, NULL, &coded));
    n->coded = l->tensors + (coded - l->tensors);
    return BINWRN_OK;
  }
  wanted[1] = n->row_bytes;
  return binwrn_need_named(r, "", DTYPE_U8, 2, wanted, &n->bits);
}

static binwrn_error check_pool(reading *r) {
  TRY(slide(r));
  r->cost = (uint64_t)r->n->window[0] * (uint64_t)r->n->window[1];
  return BINWRN_OK;
}

static binwrn_error check_pad_channels(reading *r) {
  loader *l = r->l;
  const json_value *channels = binwrn_field(r, "channels");
  DEMAND(binwrn_is_int(channels, r->in.channels, MAX_CHANNELS), "operation %d: bad channels", r->index);
  r->out.channels = (int)channels->integer;
  return BINWRN_OK;
}

static int equal(shape a, shape b) {
  return a.height == b.height && a.width == b.width && a.channels == b.channels;
}

static binwrn_error check_add(reading *r) {
  loader *l = r->l;
  DEMAND(equal(r->in, l->values[r->n->in[1]].shape), "operation %d: values of different shapes", r->index);
  return BINWRN_OK;
}

static binwrn_error check_product(reading *r) {
  loader *l = r->l;
  const shape y = l->values[r->n->in[1]].shape;
  DEMAND(equal(r->in, y) || (y.height == 1 && y.width == 1 && y.channels == r->in.channels),
         "operation %d: values of different shapes", r->index);
  return BINWRN_OK;
}

static binwrn_error check_mean(reading *r) {
  r->out.height = r->out.width = 1;
  return BINWRN_OK;
}

static binwrn_error check_global_pool(reading *r) {
  loader *l = r->l;
  const json_value *kind = binwrn_field(r, "kind");
  const int average = binwrn_json_is_string(kind, "average");
  DEMAND(average || binwrn_json_is_string(kind, "max"), "operation %d: its kind is neither average nor max", r->index);
  r->n->choice = average ? CHOICE_AVERAGE : CHOICE_MAX;
  r->cost = (uint64_t)r->in.height * (uint64_t)r->in.width;
  return check_mean(r);
}

static binwrn_error check_pad(reading *r) {
  static const int most[2] = {MAX_SIDE, MAX_SIDE};
  loader *l = r->l;
  const json_value *value = binwrn_field(r, "value");
  int(*pads)[2] = r->n->pads;
  DEMAND(read_pads(r, most, pads) && (pads[0][0] || pads[0][1] || pads[1][0] || pads[1][1]),
         "operation %d: bad pads", r->index);
  DEMAND(binwrn_is_number(value, MAX_CONSTANT), "operation %d: its value is no number", r->index);
  r->n->number = (float)value->real;
  r->out.height += pads[0][0] + pads[0][1];
  r->out.width += pads[1][0] + pads[1][1];
  return BINWRN_OK;
}

static binwrn_error check_concat(reading *r) {
  loader *l = r->l;
  int channels = 0, i;
  for (i = 0; i < r->n->in_count; i++) {
    const shape x = l->values[r->n->in[i]].shape;
    DEMAND(x.height == r->in.height && x.width == r->in.width, "operation %d: values of different sizes", r->index);
    channels += x.channels; /* at most 256 x 65536 */
  }
  DEMAND(channels <= MAX_CHANNELS, "operation %d: more than %d channels", r->index, MAX_CHANNELS);
  r->out.channels = channels;
  return BINWRN_OK;
}

static binwrn_error check_resize(reading *r) {
  loader *l = r->l;
  const json_value *method = binwrn_field(r, "method");
  const int bilinear = binwrn_json_is_string(method, "bilinear");
  int *factor = r->n->stride;
  DEMAND(binwrn_pair(&l->metadata, binwrn_field(r, "factor"), 1, MAX_WINDOW, factor) && (factor[0] > 1 || factor[1] > 1),
         "operation %d: bad factor", r->index);
  DEMAND(bilinear || binwrn_json_is_string(method, "nearest"),
         "operation %d: its method is neither nearest nor bilinear", r->index);
  r->n->choice = bilinear ? CHOICE_BILINEAR : CHOICE_NEAREST;
  r->cost = bilinear ? 4 : 1;
  r->out.height *= factor[0];
  r->out.width *= factor[1];
  return BINWRN_OK;
}

static binwrn_error check_elementwise(reading *r) {
  static const struct {
    const char *name;
    op_choice choice;
  } functions[] = {
      {"leaky_relu", CHOICE_LEAKY_RELU}, {"sigmoid", CHOICE_SIGMOID},           {"silu", CHOICE_SILU},
      {"tanh", CHOICE_TANH},             {"hard_sigmoid", CHOICE_HARD_SIGMOID}, {"hard_swish", CHOICE_HARD_SWISH},
      {"gelu", CHOICE_GELU},             {"gelu_tanh", CHOICE_GELU_TANH},
  };
  loader *l = r->l;
  const json_value *name = binwrn_field(r, "function"), *alpha = binwrn_field(r, "alpha");
  size_t i;
  for (i = 0; i < sizeof functions / sizeof *functions; i++)
    if (binwrn_json_is_string(name, functions[i].name)) break;
  DEMAND(i < sizeof functions / sizeof *functions, "operation %d: unknown function", r->index);
  r->n->choice = functions[i].choice;
  DEMAND((alpha != NULL) == (r->n->choice == CHOICE_LEAKY_RELU), "operation %d: alpha belongs to leaky_relu", r->index);
  DEMAND(!alpha || binwrn_is_number(alpha, MAX_SLOPE), "operation %d: alpha is no number up to %d", r->index, MAX_SLOPE);
  if (alpha) r->n->number = (float)alpha->real;
  r->cost = 16;
  return BINWRN_OK;
}

static const struct {
  const char *name;
  op_kind kind;
  unsigned feature; /* of version 2; 0: version 1 has it */
  int least, most;  /* inputs */
  const char *fields[10];
  binwrn_error (*check)(reading *);
} OPERATIONS[] = {
    {"affine", OP_AFFINE, 0, 1, 1, {"tensor", "min", "max"}, check_affine},
    {"conv", OP_CONV, 0, 1, 1,
     {"tensor", "window", "stride", "pads", "channels", "coding", "groups", "dilation", "weights"}, check_conv},
    {"average_pool", OP_AVERAGE_POOL, 0, 1, 1, {"window", "stride", "pads"}, check_pool},
    {"max_pool", OP_MAX_POOL, 0, 1, 1, {"window", "stride", "pads"}, check_pool},
    {"pad_channels", OP_PAD_CHANNELS, 0, 1, 1, {"channels"}, check_pad_channels},
    {"add", OP_ADD, 0, 2, 2, {NULL}, check_add},
    {"global_average", OP_MEAN, 0, 1, 1, {NULL}, check_mean},
    {"concat", OP_CONCAT, FEATURE_CONCAT, 2, MAX_INPUTS, {NULL}, check_concat},
    {"elementwise", OP_ELEMENTWISE, FEATURE_ELEMENTWISE, 1, 1, {"function", "alpha"}, check_elementwise},
    {"global_pool", OP_GLOBAL_POOL, FEATURE_GLOBAL_POOL, 1, 1, {"kind"}, check_global_pool},
    {"pad", OP_PAD, FEATURE_PAD, 1, 1, {"pads", "value"}, check_pad},
    {"product", OP_PRODUCT, FEATURE_PRODUCT, 2, 2, {NULL}, check_product},
    {"resize", OP_RESIZE, FEATURE_RESIZE, 1, 1, {"factor", "method"}, check_resize},
    {"requantize", OP_REQUANTIZE, FEATURE_INT8, 1, 1, {"tensor", "shift", "low", "high", "type", "zero", "scale"},
     binwrn_check_requantize},
    {"table", OP_TABLE, FEATURE_INT8, 1, 1, {"tensor", "type", "zero", "scale"}, binwrn_check_table},
};

/* Fields that version 2 adds to operations of version 1. */
static const struct {
  const char *field;
  unsigned feature;
} NEWER[] = {
    {"max", FEATURE_CLIP},
    {"coding", FEATURE_ENTROPY},
    {"groups", FEATURE_GROUPS},
    {"dilation", FEATURE_DILATION},
    {"weights", FEATURE_FLOAT_KERNELS},
};

/* --- what all have in common ---------------------------------------------------------------------------- */

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

/* Its fields are those of its kind, which is number k. */
static binwrn_error check_fields(loader *l, int index, const json_value *op, size_t k) {
  const json_document *d = &l->metadata;
  const json_value *field;
  size_t f;
  for (field = binwrn_json_first(d, op); field; field = binwrn_json_next(d, binwrn_json_next(d, field))) {
    int known = binwrn_json_is_string(field, "op") || binwrn_json_is_string(field, "in") ||
                binwrn_json_is_string(field, "out");
    for (f = 0; !known && OPERATIONS[k].fields[f]; f++)
      known = binwrn_json_is_string(field, OPERATIONS[k].fields[f]);
    if (!known && (l->required & FEATURE_INT8) && binwrn_is_integer_field(OPERATIONS[k].name, field)) {
      known = 1;
      l->used |= FEATURE_INT8;
    }
    if (known && binwrn_json_is_string(field, "weights") &&
        binwrn_json_is_string(binwrn_json_next(d, field), "int8")) {
      DEMAND(l->version > 1, "operation %d (%s): unknown field 'weights'", index, OPERATIONS[k].name);
      l->used |= FEATURE_INT8;
      continue;
    }
    for (f = 0; known && f < sizeof NEWER / sizeof *NEWER; f++)
      if (binwrn_json_is_string(field, NEWER[f].field)) {
        known = l->version > 1;
        l->used |= NEWER[f].feature;
      }
    DEMAND(known, "operation %d (%s): unknown field '%s'", index, OPERATIONS[k].name,
           binwrn_shorten(field->text, field->length).text);
  }
  return BINWRN_OK;
}

/* Its inputs are there, and its output is new. */
static binwrn_error check_names(loader *l, int index, const json_value *op, size_t k, node *n) {
  const json_document *d = &l->metadata;
  const json_value *inputs = binwrn_json_member(d, op, "in"), *out = binwrn_json_member(d, op, "out"), *name;
  DEMAND(inputs && inputs->type == JSON_ARRAY && (int64_t)inputs->count >= OPERATIONS[k].least &&
             (int64_t)inputs->count <= OPERATIONS[k].most,
         "operation %d has not %d inputs", index, OPERATIONS[k].least);
  for (name = binwrn_json_first(d, inputs); name; name = binwrn_json_next(d, name)) {
    const int in = find_value(l, name);
    DEMAND(in >= 0, "operation %d: its inputs are not made by the operations before it", index);
    n->in[n->in_count++] = in;
    l->values[in].uses++;
  }
  DEMAND(out && out->type == JSON_STRING && out->length && characters(out) <= MAX_NAME,
         "operation %d: bad name of its output", index);
  DEMAND(find_value(l, out) < 0, "operation %d: its output is made twice", index);
  return BINWRN_OK;
}

binwrn_error binwrn_read_operation(loader *l, int index, int count, const json_value *op, uint64_t *activations,
                                   uint64_t *work) {
  const json_value *kind = binwrn_json_member(&l->metadata, op, "op");
  node *n = &l->nodes[l->node_count];
  value *v = &l->values[l->value_count];
  reading r = {l, index, op, n, {0, 0, 0}, {0, 0, 0}, 1};
  size_t k;
  DEMAND(op->type == JSON_OBJECT, "operation %d is not an object", index);
  for (k = 0; k < sizeof OPERATIONS / sizeof *OPERATIONS; k++)
    if (binwrn_json_is_string(kind, OPERATIONS[k].name)) break;
  DEMAND(k < sizeof OPERATIONS / sizeof *OPERATIONS && (l->version > 1 || !OPERATIONS[k].feature) &&
             (OPERATIONS[k].feature != FEATURE_INT8 || (l->required & FEATURE_INT8)),
         "operation %d: unknown op", index);
  l->used |= OPERATIONS[k].feature;
  n->kind = OPERATIONS[k].kind;
  n->in = index ? n[-1].in + n[-1].in_count : l->inputs;
  n->add = -1;
  n->groups = n->dilation[0] = n->dilation[1] = 1;
  n->affine.min = n->after.min = -INFINITY;
  n->affine.max = n->after.max = INFINITY;
  TRY(check_fields(l, index, op, k));
  TRY(check_names(l, index, op, k, n));
  DEMAND(n->kind != OP_MEAN || index + 1 == count, "operation %d is global_average, but not the last one", index);
  r.in = r.out = l->values[n->in[0]].shape;
  TRY(OPERATIONS[k].check(&r));
  if (l->required & FEATURE_INT8) TRY(binwrn_check_integers(&r, OPERATIONS[k].name, &v->integers));
  DEMAND(l->version == 1 || (r.out.height <= MAX_SIDE && r.out.width <= MAX_SIDE),
         "operation %d: more than %d pixels a side", index, MAX_SIDE);
  v->name = binwrn_json_member(&l->metadata, op, "out");
  v->shape = r.out;
  n->out = l->value_count++;
  l->node_count++;
  *activations += elements(r.out);
  DEMAND(*activations <= MAX_ACTIVATIONS, "operation %d: too many activations", index);
  *work += elements(r.out) * r.cost; /* at most 2^27 * 2^28 */
  DEMAND(*work <= MAX_WORK, "operation %d: too many multiply-adds", index);
  return BINWRN_OK;
}
