/* What the parts of the loader share: container.c reads the file's header, network.c its operations, plan.c makes
 * them ready to run, api.c calls one after the other. Every rule of docs/packed-format.md is checked, with the
 * limits of numpy_reader.py, before anything is allocated by what the file says. */
#ifndef BINWRN_LOADER_H
#define BINWRN_LOADER_H

#include "internal.h"
#include "json.h"

#define MAX_HEADER (16u << 20)
#define MAX_DATA (256 << 20)
#define MAX_CHANNELS 65536

typedef struct {
  const char *name;
  size_t length;
  int is_float, is_coded, dimensions, used;
  uint64_t shape[3], begin, end;
  unsigned char *decoded; /* the bits of coded ones, while the model is loaded */
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
  const unsigned char *bits; /* of a convolution: a row for each output channel */
  size_t row_bytes;
  const tensor *plain; /* where the bits come from: one of these two is NULL */
  tensor *coded;
  const tensor *scale, *offset;
  float min;
  int has_min;
} node;

typedef struct {
  const unsigned char *data; /* of the tensors */
  json_document header, metadata;
  const json_value *root; /* the object called binwrn */
  int version, requires_entropy, requires_temperature;
  tensor *tensors;
  int tensor_count;
  value *values;
  int value_count;
  node *nodes;
  int node_count;
  int classes;
  int covered; /* a checksum of the whole file was stated, and is right */
  int bounded; /* no image leads to values that float32 does not hold */
  const tensor *golden_image, *golden_logits;
  char *message;
} loader;

/* The start of a string of the file as it may stand in a message. */
typedef struct {
  char text[41];
} brief;

/* --- errors --- */

/* Writes the message, where there is a place for it, and returns the error. */
binwrn_error binwrn_complain(char *message, binwrn_error error, const char *format, ...);
binwrn_error binwrn_no_memory(loader *l);
brief binwrn_shorten(const char *text, size_t length);

#define DEMAND(condition, ...) \
  do { \
    if (!(condition)) return binwrn_complain(l->message, BINWRN_ERROR_FORMAT, __VA_ARGS__); \
  } while (0)
#define TRY(call) \
  do { \
    binwrn_error try_error = (call); \
    if (try_error != BINWRN_OK) return try_error; \
  } while (0)

/* --- container.c --- */

uint64_t binwrn_little_endian(const unsigned char *bytes, int count);
float binwrn_read_float(const unsigned char *bytes);
int binwrn_is_int(const json_value *v, int64_t low, int64_t high);
/* Whether it is an array of exactly two integers within the limits; they go to `out`. */
int binwrn_pair(const json_document *d, const json_value *v, int64_t low, int64_t high, int out[2]);
/* The tensor called name + suffix, or NULL. */
tensor *binwrn_find_tensor(const loader *l, const char *name, size_t length, const char *suffix);
/* The length of the header of a file of `size` bytes, of which `start` has the first. */
binwrn_error binwrn_header_length(const unsigned char *start, uint64_t size, size_t *length, char *message);
/* text: the header, which is changed, as strings are unescaped in it. data_size: bytes that follow it. */
binwrn_error binwrn_read_container(loader *l, char *text, size_t length, uint64_t data_size);

/* --- description.c --- */

/* Checks the fields that say what the model is for. */
binwrn_error binwrn_check_description(loader *l);

/* --- range.c --- */

/* Computes `bounded`; refuses a file with an operation whose results float32 may not hold. */
binwrn_error binwrn_check_ranges(loader *l);

/* --- network.c --- */

/* Checks the operations and fills `values` and `nodes`. */
binwrn_error binwrn_read_network(loader *l);
/* Checks what the tensors hold. */
binwrn_error binwrn_check_tensors(loader *l);

/* --- plan.c --- */

/* Memory of the model: counted, limited, aligned, set to 0, freed with it. NULL: not enough. */
void *binwrn_take(binwrn_model *model, uint64_t size);
const float *binwrn_copy_floats(loader *l, binwrn_model *model, const tensor *t);
/* Joins operations, places the values, and makes all that running them needs but the threads. */
binwrn_error binwrn_plan(loader *l, binwrn_model *model);

static inline uint64_t elements(shape s) {
  return (uint64_t)s.height * (uint64_t)s.width * (uint64_t)s.channels;
}

#endif
