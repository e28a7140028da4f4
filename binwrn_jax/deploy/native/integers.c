/* Integer networks: the types of their values, the fields of their operations, and their tensors (`int8` in
 * docs/packed-format-2.md). */
#include <string.h>

#include "loader.h"

#define MAX_SHIFT 31
#define MAX_MULTIPLIER (1 << 30) /* of a sum */
#define MAX_SUM INT32_MAX

static const struct {
  const char *name;
  tensor_dtype dtype;
  int64_t low, high;
} TYPES[] = {
    {"u8", DTYPE_U8, 0, 255},
    {"i8", DTYPE_I8, -128, 127},
    {"i16", DTYPE_I16, -32768, 32767},
    {"i32", DTYPE_I32, INT32_MIN, INT32_MAX},
};

int binwrn_is_integer_field(const char *op, const json_value *field) {
  static const struct {
    const char *op;
    const char *fields[6];
  } FIELDS[] = {
      {"conv", {"scale"}},
      {"add", {"type", "zero", "scale", "shift", "multipliers"}},
      {"product", {"type", "zero", "scale", "shift", "multiplier"}},
      {"global_average", {"scale"}},
  };
  size_t i, f;
  for (i = 0; i < sizeof FIELDS / sizeof *FIELDS; i++)
    for (f = 0; strcmp(op, FIELDS[i].op) == 0 && FIELDS[i].fields[f]; f++)
      if (binwrn_json_is_string(field, FIELDS[i].fields[f])) return 1;
  return 0;
}

/* The smallest (0) or largest (1) integer of a value, without its zero point. */
static int end_of(const integers *v, int largest) {
  return (int)(largest ? TYPES[v->type].high : TYPES[v->type].low) - v->zero;
}

static int is_scale(const json_value *v) {
  return binwrn_is_number(v, 0x1p64) && v->real >= 0x1p-64;
}

/* The scale of a result; 0 where it is a list of `channels` scales, which is allowed if there are any. */
static binwrn_error read_scale(reading *r, int channels, double *scale) {
  loader *l = r->l;
  const json_document *d = &l->metadata;
  const json_value *v = binwrn_field(r, "scale"), *one;
  *scale = 0;
  if (v && v->type == JSON_ARRAY && channels && v->count == (uint32_t)channels) {
    for (one = binwrn_json_first(d, v); one; one = binwrn_json_next(d, one))
      DEMAND(is_scale(one), "operation %d: a scale is no number from 2^-64 to 2^64", r->index);
    return BINWRN_OK;
  }
  DEMAND(v && is_scale(v), "operation %d: its scale is no number from 2^-64 to 2^64", r->index);
  *scale = v->real;
  return BINWRN_OK;
}

/* The type that an operation states for its result, and its shift. */
static binwrn_error read_type(reading *r, integers *result) {
  loader *l = r->l;
  const json_value *type = binwrn_field(r, "type"), *zero = binwrn_field(r, "zero"), *shift = binwrn_field(r, "shift");
  int t;
  for (t = 0; t < TYPE_I32; t++)
    if (binwrn_json_is_string(type, TYPES[t].name)) break;
  DEMAND(t < TYPE_I32, "operation %d: its type is none of u8, i8 and i16", r->index);
  result->type = (integer_type)t;
  result->zero = 0;
  if (zero) {
    DEMAND(t != TYPE_I16 && binwrn_is_int(zero, TYPES[t].low, TYPES[t].high) && zero->integer != 0,
           "operation %d: bad zero", r->index);
    result->zero = (int)zero->integer;
  }
  if (shift) {
    DEMAND(binwrn_is_int(shift, 0, MAX_SHIFT) && (shift->integer || r->n->kind != OP_ADD), "operation %d: bad shift",
           r->index);
    r->n->integers.shift = (int)shift->integer;
  }
  r->n->integers.low = end_of(result, 0);
  r->n->integers.high = end_of(result, 1);
  return read_scale(r, 0, &result->scale);
}

/* A limit that is not the default. */
static binwrn_error read_limit(reading *r, const char *name, int low, int high, int *limit) {
  loader *l = r->l;
  const json_value *v = binwrn_field(r, name);
  if (!v) return BINWRN_OK;
  DEMAND(binwrn_is_int(v, low, high) && v->integer != *limit, "operation %d: bad %s", r->index, name);
  *limit = (int)v->integer;
  return BINWRN_OK;
}

binwrn_error binwrn_check_requantize(reading *r) {
  loader *l = r->l;
  const uint64_t channels = (uint64_t)r->in.channels;
  integer_fields *f = &r->n->integers;
  integers result;
  int low, high;
  DEMAND(binwrn_field(r, "shift"), "operation %d: no shift", r->index);
  TRY(binwrn_need_named(r, ".multiplier", DTYPE_I32, 1, &channels, &r->n->multiplier));
  TRY(binwrn_need_named(r, ".bias", DTYPE_I32, 1, &channels, &r->n->bias));
  TRY(read_type(r, &result));
  low = f->low, high = f->high;
  TRY(read_limit(r, "low", low, high, &f->low));
  TRY(read_limit(r, "high", low, high, &f->high));
  DEMAND(f->low <= f->high, "operation %d: low above high", r->index);
  return BINWRN_OK;
}

binwrn_error binwrn_check_table(reading *r) {
  static const uint64_t entries = 256;
  integers result;
  TRY(read_type(r, &result));
  return binwrn_need_named(r, "", TYPES[result.type].dtype, 1, &entries, &r->n->table);
}

static binwrn_error check_sums(reading *r, integers *result) {
  loader *l = r->l;
  const node *n = r->n;
  const uint64_t most = n->floats ? 255 * 127 : 255;
  DEMAND(!n->floats || n->floats->dtype == DTYPE_I8, "operation %d: float32 weights", r->index);
  DEMAND(r->cost * most <= MAX_SUM, "operation %d: its sums can exceed 32 bits", r->index);
  result->type = TYPE_I32, result->zero = 0;
  return read_scale(r, n->floats ? r->out.channels : 0, &result->scale);
}

static binwrn_error check_multipliers(reading *r) {
  loader *l = r->l;
  const json_value *v = binwrn_field(r, "multipliers");
  int64_t *m = r->n->integers.multipliers;
  int both[2];
  m[0] = m[1] = 1;
  if (!v) return BINWRN_OK;
  DEMAND(binwrn_pair(&l->metadata, v, -MAX_MULTIPLIER, MAX_MULTIPLIER, both) && (both[0] != 1 || both[1] != 1),
         "operation %d: bad multipliers", r->index);
  m[0] = both[0], m[1] = both[1];
  return BINWRN_OK;
}

/* Of the operations that keep the type of their input, what else must hold. */
static binwrn_error check_same(reading *r, const integers *x, integers *result) {
  loader *l = r->l;
  const node *n = r->n;
  const json_value *value = binwrn_field(r, "value");
  int i;
  *result = *x;
  if (n->kind == OP_PAD) {
    DEMAND(binwrn_is_int(value, end_of(x, 0), end_of(x, 1)), "operation %d: bad value", r->index);
    r->n->integers.low = (int)value->integer;
  }
  for (i = 0; n->kind == OP_CONCAT && i < n->in_count; i++) {
    const integers *other = &l->values[n->in[i]].integers;
    DEMAND(other->type == x->type && other->zero == x->zero && !(other->scale < x->scale) && !(other->scale > x->scale),
           "operation %d: values of different types, zero points or scales", r->index);
  }
  if (n->kind == OP_MEAN) {
    const uint64_t most = x->type == TYPE_I16 ? 32768 : 255;
    DEMAND((uint64_t)r->in.height * (uint64_t)r->in.width * most <= MAX_SUM, "operation %d: its sums can exceed 32 bits",
           r->index);
    result->type = TYPE_I32, result->zero = 0;
    TRY(read_scale(r, 0, &result->scale));
    r->n->integers.scale = result->scale;
  }
  return BINWRN_OK;
}

binwrn_error binwrn_check_integers(reading *r, const char *op, integers *result) {
  loader *l = r->l;
  node *n = r->n;
  const integers *x = &l->values[n->in[0]].integers;
  const json_value *multiplier = binwrn_field(r, "multiplier");
  const integer_type most = n->kind == OP_CONV || n->kind == OP_TABLE           ? TYPE_I8
                            : n->kind == OP_ADD || n->kind == OP_REQUANTIZE ? TYPE_I32
                                                                            : TYPE_I16;
  int i;
  DEMAND(n->kind != OP_AFFINE && n->kind != OP_ELEMENTWISE, "operation %d (%s): of a float network", r->index, op);
  for (i = 0; i < n->in_count; i++)
    DEMAND(l->values[n->in[i]].integers.type <= most, "operation %d (%s): inputs of a wrong type", r->index, op);
  switch (n->kind) {
    case OP_CONV: return check_sums(r, result);
    case OP_REQUANTIZE: {
      const integer_fields limits = n->integers; /* its checker has read them */
      TRY(read_type(r, result));
      n->integers = limits;
      return BINWRN_OK;
    }
    case OP_TABLE:
      TRY(read_type(r, result));
      n->integers.zero_in = (int)TYPES[x->type].low - x->zero;
      n->integers.zero_out = result->zero;
      return BINWRN_OK;
    case OP_ADD: TRY(check_multipliers(r)); return read_type(r, result);
    case OP_PRODUCT:
      DEMAND(binwrn_is_int(multiplier, 1, MAX_SUM), "operation %d: bad multiplier", r->index);
      DEMAND(binwrn_field(r, "shift"), "operation %d: no shift", r->index);
      n->integers.multipliers[0] = multiplier->integer;
      return read_type(r, result);
    default: return check_same(r, x, result);
  }
}

/* --- making them ready ---------------------------------------------------------------------------------- */

static const int32_t *copy_ints(loader *l, binwrn_model *model, const tensor *t) {
  const size_t count = (size_t)(t->end - t->begin) / 4;
  int32_t *result = binwrn_take(model, count * sizeof *result);
  size_t i;
  for (i = 0; result && i < count; i++) result[i] = binwrn_read_int(l->data + t->begin + 4 * i);
  return result;
}

/* The integers of a table, without the zero point. */
static const int32_t *copy_table(loader *l, binwrn_model *model, const node *n) {
  const unsigned char *from = l->data + n->table->begin;
  int32_t *result = binwrn_take(model, 256 * sizeof *result);
  int i;
  for (i = 0; result && i < 256; i++) {
    int32_t stored = from[i];
    if (n->table->dtype == DTYPE_I8 && stored > 127) stored -= 256;
    if (n->table->dtype == DTYPE_I16) {
      stored = (int32_t)binwrn_little_endian(from + 2 * i, 2);
      if (stored > 32767) stored -= 65536;
    }
    result[i] = stored - n->integers.zero_out;
  }
  return result;
}

/* The weights as -127 to 127, [groups][taps][inputs][outputs], so that the outputs of a pixel lie side by side. */
static const int8_t *arrange_weights(binwrn_model *model, const node *n, const operation *op) {
  const size_t taps = (size_t)n->window[0] * (size_t)n->window[1], inputs = (size_t)(op->in.channels / n->groups),
               outputs = (size_t)(op->out.channels / n->groups), count = taps * inputs;
  int8_t *result = binwrn_take(model, (uint64_t)n->groups * count * outputs);
  size_t o, k;
  for (o = 0; result && o < (size_t)op->out.channels; o++) {
    const unsigned char *row = n->weights + o * n->row_bytes;
    int8_t *to = result + o / outputs * count * outputs + o % outputs;
    for (k = 0; k < count; k++) {
      const int stored = n->floats ? row[k] : row[k / 8] >> k % 8 & 1 ? 1 : 255;
      to[k * outputs] = (int8_t)(stored > 127 ? stored - 256 : stored);
    }
  }
  return result;
}

binwrn_error binwrn_prepare_integers(loader *l, const node *n, operation *op, binwrn_model *model) {
  binwrn_description *d = &model->description;
  integer_fields *f = &op->integers;
  *f = n->integers;
  if (n->kind == OP_REQUANTIZE) {
    f->multiplier = copy_ints(l, model, n->multiplier);
    f->bias = copy_ints(l, model, n->bias);
    if (!f->multiplier || !f->bias) return binwrn_no_memory(l);
  }
  if (n->kind == OP_TABLE) {
    f->table = copy_table(l, model, n);
    if (!f->table) return binwrn_no_memory(l);
  }
  if (n->kind == OP_CONV) {
    const uint64_t weights = (uint64_t)n->window[0] * (uint64_t)n->window[1] * (uint64_t)(op->in.channels / n->groups);
    op->conv.groups = n->groups;
    op->conv.inputs = op->in.channels / n->groups;
    op->conv.outputs = op->out.channels / n->groups;
    f->weights = arrange_weights(model, n, op);
    if (!f->weights) return binwrn_no_memory(l);
    d->multiply_adds += elements(op->out) * weights;
    d->weight_bytes += weights * (uint64_t)op->out.channels;
  }
  return BINWRN_OK;
}
