/* What the parts of the runtime share; docs/native.md explains the method. */
#ifndef BINWRN_INTERNAL_H
#define BINWRN_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "binwrn.h"

/* Output pixels of a row that a kernel works on at a time. */
#define PIXELS 8
/* A tile's tables should stay in the first level cache, beside the weights and some sums. */
#define TABLE_BYTES 32768
#define MAX_TILE_ROWS 4
/* The largest magnitude of a value in a network whose values have no known bound. */
#define MAX_VALUE 18446744073709551616.0 /* 2^64 */
/* Of every array that vectors are loaded from. */
#define ALIGNMENT 64

/* max(min, x * scale + offset), one scale and offset per channel. */
typedef struct {
  const float *scale, *offset; /* NULL: no multiply-add */
  float min;                   /* -INFINITY where there is none */
} affine;

/* Inputs of one pixel that a kernel takes at a time, and of one group: no more than this. */
#define MAX_STAGE 32
#define MAX_GROUP 8

/* One way to sum signed inputs. `group` inputs in a row (channels of one pixel) have a table of `table`
 * floats, which gives each of their 2^group signed sums. The weights of `lanes` output channels for `slots`
 * such groups are `lanes` words of 32 bits. */
typedef struct {
  const char *name;
  int lanes, group, slots, table;
  /* Bits of one group (bit i: input i is added, otherwise subtracted) as they stand in a word. */
  uint32_t (*code)(unsigned bits, int slot);
  /* Tables of `slots` groups, the first n of whose inputs there are; the others are 0. A multiply-add may
   * come before. */
  void (*tables)(const float *inputs, int n, const affine *before, int slots, float *tables);
  /* sums[PIXELS][lanes] += the signed inputs. words[taps][lanes]; the tables of tap t and of pixel p begin
   * at tables + taps[t] + p * SLOTS * table, whose SLOTS is the kernel's, also where `slots` is less. */
  void (*accumulate)(float *sums, const uint32_t *words, const float *tables, const uint32_t *taps,
                     int tap_count, int slots);
} kernel;

extern const kernel binwrn_plain;
/* The fastest that this processor has, or the one of that name; NULL if there is none. */
const kernel *binwrn_choose_kernel(const char *name);

typedef struct {
  int height, width, channels;
} shape;

typedef enum { OP_IMAGE, OP_AFFINE, OP_CONV, OP_AVERAGE_POOL, OP_MAX_POOL, OP_PAD, OP_ADD, OP_MEAN } op_kind;

/* How one convolution is cut; see run.c. */
typedef struct {
  uint32_t *words;     /* [blocks][chunks][taps][lanes] */
  uint32_t *taps;      /* [taps] offsets into the tables of a tile, in floats */
  int tap_count;
  int blocks;          /* of `lanes` output channels */
  int chunks, groups;  /* of `slots` groups; of inputs of one pixel */
  int tile_rows, tiles_y, tiles_x;
  int parts;           /* of the blocks: more work items than tiles, where there are many threads */
  int in_rows, in_columns; /* of the input that a tile needs */
  int phase;           /* columns with the same remainder by the stride lie together: so many */
  size_t row_floats;   /* tables of one row of the input */
} conv_plan;

typedef struct {
  op_kind kind;
  shape in, out;
  int window[2], stride[2], pads[2][2];
  affine affine;       /* of the operation itself; of a convolution: before it */
  float *x, *y;        /* operands; y NULL where there is only one. A convolution adds y to its result. */
  float *result;       /* NULL: the logits of the caller */
  int items;           /* that threads may work on side by side */
  conv_plan conv;
} operation;

struct pool;

struct binwrn_model {
  binwrn_description description;
  const kernel *kernel;
  operation *operations;
  int operation_count;
  int guarded; /* each value is compared with MAX_VALUE */
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
/* The tile plan of a convolution; fails (0) where sizes exceed what 32 bits address. */
int binwrn_plan_conv(operation *op, const kernel *k, int threads);

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

/* out[i] = max(min, x[i] * scale[i] + offset[i]); in the header, so that each kernel compiles it for its
 * processor. NaN stays NaN. */
static inline void apply_affine(const affine *a, const float *x, float *out, int n) {
  int i;
  for (i = 0; i < n; i++) {
    const float y = x[i] * a->scale[i] + a->offset[i];
    out[i] = y < a->min ? a->min : y;
  }
}

/* The inputs of a kernel's `tables`, complete. */
static inline void stage_inputs(const float *inputs, int n, const affine *before, int total, float *stage) {
  int i;
  if (before->scale)
    apply_affine(before, inputs, stage, n);
  else
    for (i = 0; i < n; i++) stage[i] = inputs[i];
  for (i = n; i < total; i++) stage[i] = 0;
}

#endif
