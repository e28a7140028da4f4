/* The container: a safetensors header, its JSON, and the tensors that it announces. */
#define _POSIX_C_SOURCE 200809L

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "loader.h"
#include "sha256.h"

#define MARKER "\"file_sha256\":\"" /* in the header, before the 64 digits of the file's checksum */

/* --- small helpers -------------------------------------------------------------------------------------- */

binwrn_error binwrn_complain(char *message, binwrn_error error, const char *format, ...) {
  if (message) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, BINWRN_MESSAGE, format, arguments);
    va_end(arguments);
  }
  return error;
}

binwrn_error binwrn_no_memory(loader *l) {
  return binwrn_complain(l->message, BINWRN_ERROR_MEMORY, "not enough memory");
}

brief binwrn_shorten(const char *text, size_t length) {
  brief b;
  size_t i, n = length < sizeof b.text - 1 ? length : sizeof b.text - 1;
  for (i = 0; i < n; i++) b.text[i] = (char)(text[i] < 0x20 || text[i] > 0x7e ? '?' : text[i]);
  b.text[n] = 0;
  return b;
}

int binwrn_is_int(const json_value *v, int64_t low, int64_t high) {
  return v && v->type == JSON_INTEGER && v->integer >= low && v->integer <= high;
}

int binwrn_is_number(const json_value *v, double most) {
  return v && (v->type == JSON_INTEGER || v->type == JSON_REAL) && v->real >= -most && v->real <= most;
}

/* An array of exactly two integers within the limits. */
int binwrn_pair(const json_document *d, const json_value *v, int64_t low, int64_t high, int out[2]) {
  const json_value *a, *b;
  if (!v || v->type != JSON_ARRAY || v->count != 2) return 0;
  a = binwrn_json_first(d, v);
  b = binwrn_json_next(d, a);
  if (!binwrn_is_int(a, low, high) || !binwrn_is_int(b, low, high)) return 0;
  out[0] = (int)a->integer;
  out[1] = (int)b->integer;
  return 1;
}

uint64_t binwrn_little_endian(const unsigned char *bytes, int count) {
  uint64_t result = 0;
  while (count--) result = result << 8 | bytes[count];
  return result;
}

float binwrn_read_float(const unsigned char *bytes) {
  uint32_t bits = (uint32_t)binwrn_little_endian(bytes, 4);
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

/* --- tensors -------------------------------------------------------------------------------------------- */

static int by_begin(const void *a, const void *b) {
  const tensor *x = a, *y = b;
  return (x->begin > y->begin) - (x->begin < y->begin);
}

int binwrn_compare_text(const char *a, size_t a_length, const char *b, size_t b_length) {
  int order = memcmp(a, b, a_length < b_length ? a_length : b_length);
  return order ? order : (a_length > b_length) - (a_length < b_length);
}

static int by_name(const void *a, const void *b) {
  const tensor *x = a, *y = b;
  return binwrn_compare_text(x->name, x->length, y->name, y->length);
}

/* The tensor called name + suffix, or NULL. */
tensor *binwrn_find_tensor(const loader *l, const char *name, size_t length, const char *suffix) {
  int low = 0, high = l->tensor_count;
  const size_t more = strlen(suffix);
  while (low < high) {
    int middle = low + (high - low) / 2, order;
    tensor *t = &l->tensors[middle];
    size_t head = t->length < length ? t->length : length;
    order = memcmp(t->name, name, head);
    if (!order && t->length < length) order = -1;
    if (!order) order = binwrn_compare_text(t->name + length, t->length - length, suffix, more);
    if (!order) return t;
    if (order < 0)
      low = middle + 1;
    else
      high = middle;
  }
  return NULL;
}

static const struct {
  const char *name;
  tensor_dtype dtype;
  uint64_t size;
  int version; /* of the format, that has it first */
} DTYPES[] = {
    {"F32", DTYPE_F32, 4, 1}, {"U8", DTYPE_U8, 1, 1},   {"U16", DTYPE_U16, 2, 2},
    {"I8", DTYPE_I8, 1, 2},   {"I16", DTYPE_I16, 2, 2}, {"I32", DTYPE_I32, 4, 2},
};

static binwrn_error read_entry(loader *l, const json_value *name, const json_value *entry, tensor *t) {
  const json_document *d = &l->header;
  const json_value *dtype = binwrn_json_member(d, entry, "dtype"),
                   *dimensions = binwrn_json_member(d, entry, "shape"), *v;
  const brief b = binwrn_shorten(name->text, name->length);
  uint64_t count = 1, size;
  size_t i;
  int offsets[2];
  DEMAND(entry->type == JSON_OBJECT && entry->count == 3 && dtype && dimensions, "bad tensor entry '%s'", b.text);
  t->name = name->text;
  t->length = name->length;
  for (i = 0; i < sizeof DTYPES / sizeof *DTYPES; i++)
    if (binwrn_json_is_string(dtype, DTYPES[i].name)) break;
  DEMAND(i < sizeof DTYPES / sizeof *DTYPES && DTYPES[i].version <= l->version,
         "tensor '%s' has a dtype that is not U8 or F32, or of version 2", b.text);
  t->dtype = DTYPES[i].dtype;
  size = DTYPES[i].size;
  DEMAND(dimensions->type == JSON_ARRAY && dimensions->count <= (l->version == 1 ? 3u : 4u),
         "tensor '%s' has a bad shape", b.text);
  for (v = binwrn_json_first(d, dimensions); v; v = binwrn_json_next(d, v)) {
    DEMAND(binwrn_is_int(v, 1, MAX_DATA), "tensor '%s' has a bad shape", b.text);
    t->shape[t->dimensions++] = (uint64_t)v->integer;
    count *= (uint64_t)v->integer; /* below 2^58 */
    DEMAND(count <= MAX_DATA, "tensor '%s' is too large", b.text);
  }
  DEMAND(binwrn_pair(d, binwrn_json_member(d, entry, "data_offsets"), 0, MAX_DATA, offsets),
         "tensor '%s' has bad offsets", b.text);
  t->begin = (uint64_t)offsets[0];
  t->end = (uint64_t)offsets[1];
  DEMAND(t->end >= t->begin && t->end - t->begin == count * size,
         "tensor '%s': its shape does not fit its bytes", b.text);
  DEMAND(t->begin % size == 0, "tensor '%s' is not aligned", b.text);
  return BINWRN_OK;
}

static binwrn_error parsed(loader *l, json_result result, const json_document *d, const char *what) {
  if (result == JSON_NO_MEMORY) return binwrn_no_memory(l);
  DEMAND(result == JSON_OK, "%s is not valid JSON", what);
  DEMAND(d->values[0].type == JSON_OBJECT, "%s is not a JSON object", what);
  return BINWRN_OK;
}

/* The whole file's checksum, as it states it, with a final 0; and as it is, its own digits taken as zeros.
 * Returns whether it states one, exactly once. */
static int whole_checksum(const loader *l, const char *text, size_t length, uint64_t data_size, char stated[65],
                          char found[65]) {
  static const char zeros[] = "0000000000000000000000000000000000000000000000000000000000000000";
  const size_t marker = strlen(MARKER);
  const char *at = NULL;
  unsigned char start[8];
  size_t i;
  sha256 hash;
  for (i = 0; i + marker + 65 <= length; i++)
    if (text[i] == '"' && memcmp(text + i, MARKER, marker) == 0) {
      if (at) return 0;
      at = text + i + marker;
    }
  if (!at || at[64] != '"') return 0;
  for (i = 0; i < 64; i++)
    if (!((at[i] >= '0' && at[i] <= '9') || (at[i] >= 'a' && at[i] <= 'f'))) return 0;
  memcpy(stated, at, 64);
  stated[64] = 0;
  for (i = 0; i < 8; i++) start[i] = (unsigned char)((uint64_t)length >> (8 * i));
  binwrn_sha256_start(&hash);
  binwrn_sha256_update(&hash, start, 8);
  binwrn_sha256_update(&hash, (const unsigned char *)text, (size_t)(at - text));
  binwrn_sha256_update(&hash, (const unsigned char *)zeros, 64);
  binwrn_sha256_update(&hash, (const unsigned char *)at + 64, (size_t)(text + length - at) - 64);
  binwrn_sha256_update(&hash, l->data, (size_t)data_size);
  binwrn_sha256_hex(&hash, found);
  return 1;
}

binwrn_error binwrn_read_container(loader *l, char *text, size_t length, uint64_t data_size) {
  const json_document *d = &l->header;
  const json_value *outer, *binwrn, *checksum, *name;
  char stated[65], found[65];
  uint64_t position = 0;
  int i, once;
  DEMAND(length && text[0] == '{', "not a packed model: no header of a safetensors file");
  once = whole_checksum(l, text, length, data_size, stated, found); /* before parsing changes the text */
  TRY(parsed(l, binwrn_json_parse(&l->header, text, length), d, "the header"));
  outer = binwrn_json_member(d, &d->values[0], "__metadata__");
  binwrn = binwrn_json_member(d, outer, "binwrn");
  DEMAND(binwrn && binwrn->type == JSON_STRING,
         "a safetensors file, but no packed model: it has no metadata called 'binwrn'");
  checksum = binwrn_json_member(d, outer, "file_sha256");
  TRY(parsed(l, binwrn_json_parse(&l->metadata, binwrn->text, binwrn->length), &l->metadata,
             "the metadata 'binwrn'"));
  l->root = &l->metadata.values[0];
  DEMAND(binwrn_json_is_string(binwrn_json_member(&l->metadata, l->root, "format"), "binwrn-packed"),
         "its format is not 'binwrn-packed'");
  TRY(binwrn_check_version(l));
  l->tensors = calloc(d->values[0].count, sizeof *l->tensors);
  if (!l->tensors) return binwrn_no_memory(l);
  for (name = binwrn_json_first(d, &d->values[0]); name; name = binwrn_json_next(d, binwrn_json_next(d, name)))
    if (!binwrn_json_is_string(name, "__metadata__"))
      TRY(read_entry(l, name, binwrn_json_next(d, name), &l->tensors[l->tensor_count++]));
  DEMAND(l->version == 1 || checksum, "a file of version 2 without file_sha256");
  DEMAND(outer->count == (checksum ? 2u : 1u), "it has unknown metadata beside 'binwrn'");
  DEMAND((8 + length) % 8 == 0, "the tensors do not begin at a multiple of 8 bytes");

  qsort(l->tensors, (size_t)l->tensor_count, sizeof *l->tensors, by_begin);
  for (i = 0; i < l->tensor_count; i++) {
    DEMAND(l->tensors[i].begin == position, "gap or overlap before the bytes of tensor '%s'",
           binwrn_shorten(l->tensors[i].name, l->tensors[i].length).text);
    position = l->tensors[i].end;
  }
  DEMAND(position == data_size, "the file has not the size that its header announces: truncated or damaged");
  if (checksum) {
    DEMAND(once && binwrn_json_is_string(checksum, stated), "file_sha256 is no checksum");
#ifndef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION /* a fuzzer does not find checksums */
    DEMAND(strcmp(stated, found) == 0, "damaged: the file does not have the checksum that it states");
#endif
    l->covered = 1;
  }
  qsort(l->tensors, (size_t)l->tensor_count, sizeof *l->tensors, by_name);
  return BINWRN_OK;
}

/* The length of the header of a file of that size. */
binwrn_error binwrn_header_length(const unsigned char *start, uint64_t size, size_t *length, char *message) {
  uint64_t stated;
  if (size < 8)
    return binwrn_complain(message, BINWRN_ERROR_FORMAT, "not a packed model: only %d bytes long", (int)size);
  stated = binwrn_little_endian(start, 8);
  if (stated > MAX_HEADER)
    return binwrn_complain(message, BINWRN_ERROR_FORMAT, "not a packed model: no header of a safetensors file");
  if (stated > size - 8)
    return binwrn_complain(message, BINWRN_ERROR_FORMAT, "truncated: a header of %d bytes is not all there",
                           (int)stated);
  *length = (size_t)stated;
  return BINWRN_OK;
}
