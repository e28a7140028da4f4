/* What the parts of the loader share: container.c reads the file's header, features.c its version, network.c and
 * operations.c the network, plan.c and arrange.c make it ready to run, api.c calls one after the other. Every rule of
 * docs/packed-format.md and docs/packed-format-2.md is checked, with the limits of numpy_reader.py, before anything is
 * allocated by what the file says. */
#ifndef BINWRN_LOADER_H
#define BINWRN_LOADER_H

#include "internal.h"
#include "json.h"

#define MAX_HEADER (16u << 20)
#define MAX_DATA (256 << 20)
#define MAX_CHANNELS 65536
#define MAX_SIDE 4096 /* of the image, and in version 2 of any value */

/* Features of version 2; those that this program does not read have no number. */
enum {
  FEATURE_CLIP = 1,
  FEATURE_CONCAT = 2,
  FEATURE_DILATION = 4,
  FEATURE_ELEMENTWISE = 8,
  FEATURE_ENTROPY = 16,
  FEATURE_FLOAT_KERNELS = 32,
  FEATURE_GLOBAL_POOL = 64,
  FEATURE_GROUPS = 128,
  FEATURE_PAD = 256,
  FEATURE_PRODUCT = 512,
  FEATURE_RESIZE = 1024,
  FEATURE_TEMPERATURE = 2048,
  FEATURE_INT8 = 4096
};

typedef enum { DTYPE_U8, DTYPE_U16, DTYPE_F32, DTYPE_I8, DTYPE_I16, DTYPE_I32 } tensor_dtype;

typedef struct {
  const char *name;
  size_t length;
  tensor_dtype dtype;
  int dimensions, used;
  uint64_t shape[4], begin, end;
  unsigned char *decoded; /* the bits of coded ones, while the model is loaded */
} tensor;

/* What the numbers of a value of an integer network are: (a - zero) * scale for each stored integer a. */
typedef enum { TYPE_U8, TYPE_I8, TYPE_I16, TYPE_I32 } integer_type;
typedef struct {
  integer_type type;
  int zero;
  double scale; /* 0: one for each channel */
} integers;

/* A value that operations name. */
typedef struct {
  const json_value *name;
  shape shape;
  int uses;       /* as an input */
  int maker;      /* node that makes it */
  int last;       /* node that reads it last */
  int64_t offset; /* floats, in the arena; -1: not placed */
  uint64_t size;  /* floats */
  integers integers; /* of an integer network */
} value;

/* A multiply-add as read. */
typedef struct {
  const tensor *scale, *offset; /* NULL: none */
  float min, max;               /* infinite where there is no limit */
} node_affine;

/* An operation as read; some of them become part of others. */
typedef struct {
  op_kind kind;
  int *in, in_count, out;       /* values */
  int fused;                    /* nothing is left of it */
  int add;                      /* of a convolution: value that is added to its result, or -1 */
  int window[2], stride[2], pads[2][2], dilation[2], groups; /* resize: its factors are `stride` */
  op_choice choice;
  float number;                 /* pad: its value; leaky ReLU: its slope */
  const unsigned char *weights; /* of a convolution: a row for each output channel */
  size_t row_bytes;
  const tensor *bits, *floats;  /* where they come from: two of these three are NULL */
  tensor *coded;
  node_affine affine, after;    /* of the operation itself, before or after a convolution */
  integer_fields integers;      /* of an integer network; its tensors: */
  const tensor *multiplier, *bias, *table;
} node;

/* An operation while it is checked. */
typedef struct {
  struct loader *l;
  int index;
  const json_value *op;
  node *n;
  shape in, out;
  uint64_t cost; /* multiply-adds for each number of the result */
} reading;

typedef struct loader {
  const unsigned char *data; /* of the tensors */
  json_document header, metadata;
  const json_value *root; /* the object called binwrn */
  int version;
  unsigned required, used; /* features */
  tensor *tensors;
  int tensor_count;
  value *values;
  int value_count;
  node *nodes;
  int node_count;
  int *inputs; /* of all nodes */
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
static inline int32_t binwrn_read_int(const unsigned char *bytes) {
  return (int32_t)(uint32_t)binwrn_little_endian(bytes, 4);
}
int binwrn_is_int(const json_value *v, int64_t low, int64_t high);
/* Whether it is a number of at most that magnitude. */
int binwrn_is_number(const json_value *v, double most);
int binwrn_compare_text(const char *a, size_t a_length, const char *b, size_t b_length);
/* Whether it is an array of exactly two integers within the limits; they go to `out`. */
int binwrn_pair(const json_document *d, const json_value *v, int64_t low, int64_t high, int out[2]);
/* The tensor called name + suffix, or NULL. */
tensor *binwrn_find_tensor(const loader *l, const char *name, size_t length, const char *suffix);
/* The length of the header of a file of `size` bytes, of which `start` has the first. */
binwrn_error binwrn_header_length(const unsigned char *start, uint64_t size, size_t *length, char *message);
/* text: the header, which is changed, as strings are unescaped in it. data_size: bytes that follow it. */
binwrn_error binwrn_read_container(loader *l, char *text, size_t length, uint64_t data_size);

/* --- features.c --- */

/* Refuses a version, or a feature of version 2, that this program does not read. */
binwrn_error binwrn_check_version(loader *l);
/* The features that the operations and the metadata use are those that the file requires. */
binwrn_error binwrn_check_features(loader *l);

/* --- description.c --- */

/* Checks the fields that say what the model is for. */
binwrn_error binwrn_check_description(loader *l);

/* --- range.c --- */

/* Computes `bounded`; refuses a file with an operation whose results float32 may not hold. */
binwrn_error binwrn_check_ranges(loader *l);

/* --- operations.c --- */

/* Checks one of `count` operations, adds its node and its value, and counts its numbers and multiply-adds. */
binwrn_error binwrn_read_operation(loader *l, int index, int count, const json_value *op, uint64_t *activations,
                                   uint64_t *work);
/* A tensor that an operation needs: there, of that kind, and used by no other. */
binwrn_error binwrn_need(loader *l, const char *name, size_t length, const char *suffix, tensor_dtype dtype,
                         int dimensions, const uint64_t *wanted, const tensor **result);

/* The same of the tensor that the operation names. */
binwrn_error binwrn_need_named(reading *r, const char *suffix, tensor_dtype dtype, int dimensions,
                               const uint64_t *wanted, const tensor **result);
static inline const json_value *binwrn_field(const reading *r, const char *name) {
  return binwrn_json_member(&r->l->metadata, r->op, name);
}

/* --- integers.c --- */

binwrn_error binwrn_check_requantize(reading *r);
binwrn_error binwrn_check_table(reading *r);
/* Whether an operation of that name has such a field in an integer network, beside those of a float network. */
int binwrn_is_integer_field(const char *op, const json_value *field);
/* Checks the types of an operation whose other fields are checked, and computes those of its result. */
binwrn_error binwrn_check_integers(reading *r, const char *op, integers *result);
/* Makes an operation of an integer network ready to run. */
binwrn_error binwrn_prepare_integers(loader *l, const node *n, operation *op, binwrn_model *model);

/* --- network.c --- */

/* Checks the operations and fills `values` and `nodes`. */
binwrn_error binwrn_read_network(loader *l);
/* Checks what the tensors hold, when coded kernels have been decoded. */
binwrn_error binwrn_check_tensors(loader *l);

/* --- decode.c --- */

/* Sets the weights of coded kernels; so many threads work side by side. */
binwrn_error binwrn_decode_kernels(loader *l, int threads);

/* --- plan.c --- */

/* Memory of the model: counted, limited, aligned, set to 0, freed with it. NULL: not enough. */
void *binwrn_take(binwrn_model *model, uint64_t size);
const float *binwrn_copy_floats(loader *l, binwrn_model *model, const tensor *t);
/* Joins operations, places the values, and makes all that running them needs but the threads. */
binwrn_error binwrn_plan(loader *l, binwrn_model *model);

/* --- arrange.c --- */

/* Whether each output channel sees one input channel, and no other does. */
int binwrn_is_depthwise(const loader *l, const node *n);
/* Cuts a convolution and puts its weights into the order in which the kernel reads them. */
binwrn_error binwrn_arrange(loader *l, const node *n, operation *op, binwrn_model *model);

static inline uint64_t elements(shape s) {
  return (uint64_t)s.height * (uint64_t)s.width * (uint64_t)s.channels;
}

#endif
