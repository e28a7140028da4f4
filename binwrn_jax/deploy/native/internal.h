/* What the parts of the runtime share; docs/native.md explains the method. */
#ifndef BINWRN_INTERNAL_H
#define BINWRN_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "binwrn.h"

/* Output pixels of a row that a kernel works on at a time; one fewer where rows are multiples of that (56, 28, 14,
 * 7). */
#define PIXELS 8
/* A tile's tables should stay in the first level cache, beside the weights and some sums. */
#define TABLE_BYTES 32768
#define MAX_TILE_ROWS 4
/* The largest magnitude of a value in a network whose values have no known bound. */
#define MAX_VALUE 18446744073709551616.0 /* 2^64 */
/* Of every array that vectors are loaded from. */
#define ALIGNMENT 64

/* min(max, max(min, x * scale + offset)), one scale and offset per channel. */
typedef struct {
  const float *scale, *offset; /* NULL: no multiply-add */
  float min, max;              /* infinite where there is no limit */
} affine;

typedef struct {
  int height, width, channels;
} shape;

typedef enum {
  OP_IMAGE,
  OP_AFFINE,
  OP_CONV,
  OP_AVERAGE_POOL,
  OP_MAX_POOL,
  OP_PAD_CHANNELS,
  OP_ADD,
  OP_MEAN,
  OP_CONCAT,
  OP_ELEMENTWISE,
  OP_GLOBAL_POOL,
  OP_PAD,
  OP_PRODUCT,
  OP_RESIZE,
  OP_REQUANTIZE,
  OP_TABLE
} op_kind;

/* Of an operation that has several forms. */
typedef enum {
  CHOICE_NONE,
  CHOICE_AVERAGE,
  CHOICE_MAX,
  CHOICE_NEAREST,
  CHOICE_BILINEAR,
  CHOICE_LEAKY_RELU,
  CHOICE_SIGMOID,
  CHOICE_SILU,
  CHOICE_TANH,
  CHOICE_HARD_SIGMOID,
  CHOICE_HARD_SWISH,
  CHOICE_GELU,
  CHOICE_GELU_TANH
} op_choice;

/* How the sums of a convolution are made: signs by tables; floats one by one; each channel by itself. */
typedef enum { METHOD_SIGNS, METHOD_FLOATS, METHOD_DEPTHWISE } conv_method;

/* How one convolution is cut; see convolve.c. */
typedef struct {
  conv_method method;
  const void *weights;     /* signs and floats: [groups][blocks][chunks][taps][lanes], 32 bits each, of floats
                            * [slots][lanes] in the place of [lanes]; depthwise: floats [taps][channels] */
  shape in, out;           /* of a 1x1 convolution: its pixels in rows of PIXELS */
  int pixels;              /* of the input; the last row may have fewer than its width */
  uint32_t *taps;          /* [tap_count] offsets into the tables of a tile, in floats */
  int tap_count;           /* those of the window, for `depth` chunks of inputs one after another */
  int depth, chunks;       /* a 1x1 convolution takes several chunks at a time, others one; so many of these */
  int groups;              /* of channels, which do not mix; of a group: */
  int inputs, outputs;     /* channels, */
  int blocks;              /* of `lanes` output channels, */
  int bundles;             /* and of inputs that have one table */
  int tile_rows, tile_columns, tiles_y, tiles_x;
  int parts;               /* of all blocks: more work items than tiles, where there are many threads */
  int covers[2];           /* pixels that the window covers, with its gaps */
  int in_rows, in_columns; /* of the input that a tile needs */
  int phase;               /* columns with the same remainder by the stride lie together: room for so many */
  size_t row_floats;       /* tables of one row of the input */
  size_t chunk_floats;     /* tables of one chunk of a tile */
} conv_plan;

/* One of the inputs of a concatenation. */
typedef struct {
  const float *x;
  int channels;
} part;

/* Of an operation of an integer network, whose values are int32, without their zero point. */
typedef struct {
  int low, high, shift;
  int64_t multipliers[2];
  int zero_in, zero_out;             /* of a table */
  const int32_t *multiplier, *bias;  /* [channels] */
  const int32_t *table;              /* [256], without the zero point */
  const int8_t *weights;             /* [groups][taps][inputs][outputs] */
  double scale;                      /* of the logits */
} integer_fields;

typedef struct {
  op_kind kind;
  op_choice choice;
  shape in, out;
  int window[2], stride[2], pads[2][2], dilation[2]; /* resize: its factors are `stride` */
  affine affine;       /* of the operation itself; of a convolution: before it */
  affine after;        /* of a convolution: of its result */
  float number;        /* pad: its value; leaky ReLU: its slope */
  float *x, *y;        /* operands; y NULL where there is only one. A convolution adds y to its result. */
  shape second;        /* of y */
  part *all;           /* operands of a concatenation */
  int all_count;
  float *result;       /* NULL: the logits of the caller */
  int items;           /* that threads may work on side by side */
  conv_plan conv;
  integer_fields integers;
} operation;

/* Inputs of one pixel that a kernel takes at a time, and of one bundle: no more than this. */
#define MAX_STAGE 32
#define MAX_BUNDLE 8
/* Channels of an item of an operation that looks at all pixels. */
#define SLICE 64

/* One way to sum inputs times weights. `bundle` inputs in a row (channels of one pixel) have a table of `table`
 * floats: of signs, which gives each of their 2^bundle signed sums; of floats, the input itself. The weights of
 * `lanes` output channels for `slots` such bundles are `words` numbers of 32 bits for each channel. */
typedef struct {
  int lanes, bundle, slots, table, words;
  /* Tables of `slots` bundles, the first n of whose inputs there are, for pixels that are `step` floats apart; the other
   * inputs are 0. A multiply-add may come before. The tables of a pixel are SLOTS * table floats apart. */
  void (*tables)(const float *inputs, size_t step, int pixels, int n, const affine *before, int slots, float *tables);
  /* sums[pixels][lanes], taken as 0 if it is the first time, += the inputs times their weights; pixels: PIXELS, or one
   * fewer. weights[taps][words][lanes]; the tables of tap t and of pixel p begin at
   * tables + taps[t] + p * SLOTS * table, whose SLOTS is the kernel's, also where `slots` is less; interleaved ones at
   * tables + taps[t] + p, for PIXELS pixels. */
  void (*accumulate)(float *sums, int pixels, int first, const void *weights, const float *tables, const uint32_t *taps,
                     int tap_count, int slots, size_t apart);
  /* NULL, or in the place of `tables`: the tables of the pixels of a phase, of which those from `begin` to `end` - 1 are
   * in the image, and `inputs` are those of `begin`. They are interleaved: the entries of all pixels beside each other,
   * those of one pixel `apart` floats from each other. */
  void (*interleave)(const float *inputs, size_t step, int begin, int end, size_t apart, int n, const affine *before,
                     int slots, float *tables);
} summation;

/* All that is written for one kind of processor. */
typedef struct {
  const char *name;
  summation signs, floats;
  /* Bits of one bundle (bit i: input i is added, otherwise subtracted) as they stand in a word of `signs`. */
  uint32_t (*code)(unsigned bits, int slot);
  /* Row y of the result of a depthwise convolution. Returns what `finish` does. */
  int (*depthwise)(const operation *op, int y, int check);
  /* Results from sums[pixels][lanes] of n <= lanes channels: a multiply-add, and `more` is added, if they are there.
   * Pixels of `more` and `out` are `channels` floats apart. If `check`, returns whether no number on the way
   * exceeds MAX_VALUE; not of those that are NaN. */
  int (*finish)(const float *sums, int lanes, int pixels, int n, const affine *after, const float *more, float *out,
                size_t channels, int check);
  /* out = f(x), a function of `elementwise`. */
  void (*apply)(op_choice f, float alpha, const float *x, float *out, size_t count);
} kernel;

extern const kernel binwrn_plain;
/* The fastest that this processor has, or the one of that name; NULL if there is none. */
const kernel *binwrn_choose_kernel(const char *name);

struct pool;

struct binwrn_model {
  binwrn_description description;
  const kernel *kernel;
  operation *operations;
  int operation_count;
  int guarded; /* each value is compared with MAX_VALUE */
  int integer; /* its values are integers */
  void **blocks; /* all that is to be freed */
  size_t block_count, block_capacity;
  uint64_t bytes, max_memory;
  float *arena;
  unsigned char *scratch; /* `threads` pieces of scratch_size bytes */
  size_t scratch_size, table_floats; /* of one thread */
  struct pool *pool;
};

/* A call of binwrn_run. Its steps (an operation on an image) have numbers that count on from run to run, and
 * from MAX_STEPS - 1 to 0: a small model comes there within days. */
typedef struct {
  const uint8_t *images;
  float *logits;
  uint64_t first_step, steps; /* below MAX_STEPS both */
  uint64_t number;            /* of the run */
  int *exceeded;              /* atomic: becomes 1 where a value exceeds MAX_VALUE */
  int processor;              /* of the thread that calls */
} job;

/* One thread's share of a run. */
typedef void binwrn_work_function(void *context, const job *job, int thread);
/* That of a model, which is the context. */
void binwrn_work(void *context, const job *job, int thread);

static inline const summation *summation_of(const kernel *k, const conv_plan *plan) {
  return plan->method == METHOD_FLOATS ? &k->floats : &k->signs;
}
/* Cuts a convolution of signs or floats; fails (0) where sizes exceed what 32 bits address. The taps are computed
 * when there is a place for them. */
int binwrn_plan_conv(operation *op, const kernel *k, int threads);
/* Raises the floats of tables and of sums to what the convolution needs of them. */
void binwrn_conv_scratch(const binwrn_model *model, const operation *op, size_t *tables, size_t *sums);
/* Returns whether no value of the item exceeds MAX_VALUE; not of those that are NaN. */
int binwrn_convolve(const binwrn_model *model, const operation *op, int item, unsigned char *scratch);
/* An item of any operation that is no convolution. */
void binwrn_simple_item(const binwrn_model *model, const operation *op, int item, const uint8_t *image, float *logits);

/* An item of any operation of an integer network. scratch: int32 for a row of the result. */
void binwrn_integer_item(const operation *op, int item, const uint8_t *image, float *logits);

struct pool *binwrn_pool_new(binwrn_work_function *work, void *context, int threads);
/* Works on `steps` steps with all threads; one caller at a time, a second one waits. */
void binwrn_pool_run(struct pool *pool, const uint8_t *images, float *logits, uint64_t steps, int *exceeded);
void binwrn_pool_free(struct pool *pool);

/* A thread takes items of the current step until there are none, then waits for the next step. It is the
 * thread that finishes the last item who opens the next step: one that the system does not let run holds up
 * the others with the item that it has, at most. */
#define MAX_ITEMS (1 << 24)
#define MAX_STEPS ((uint64_t)1 << 40) /* with MAX_ITEMS, 64 bits */
/* The current step, and the next item of it. */
uint64_t binwrn_pool_step(const struct pool *pool, int *item);
/* Takes that item; 0 if another thread was faster. */
int binwrn_pool_take(struct pool *pool, uint64_t step, int item);
/* One item is done, of so many. */
void binwrn_pool_done(struct pool *pool, uint64_t step, int items);
/* Waits for the end of a step. */
void binwrn_pool_wait(struct pool *pool, uint64_t step);

/* out[i] = min(max, max(min, x[i] * scale[i] + offset[i])); in the header, so that each kernel compiles it for its
 * processor. NaN stays NaN. */
static inline void apply_affine(const affine *a, const float *x, float *out, int n) {
  int i;
  for (i = 0; i < n; i++) {
    const float y = x[i] * a->scale[i] + a->offset[i], z = y < a->min ? a->min : y;
    out[i] = z > a->max ? a->max : z;
  }
}

#endif
