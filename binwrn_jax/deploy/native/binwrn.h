/* Runs packed binwrn models (docs/packed-format.md and docs/packed-format-2.md, all features but int8): float32 results
 * from one bit per weight.
 *
 *     binwrn_model *model;
 *     char message[BINWRN_MESSAGE];
 *     if (binwrn_load_file("model.packed", NULL, &model, message) != BINWRN_OK) { ... }
 *     float logits[10];
 *     binwrn_run(model, image, 1, logits);        // uint8, H x W x C, 0..255
 *     binwrn_free(model);
 *
 * No function aborts or prints; what can fail returns an error code; there is no global state. Models may be
 * used from several threads: a model works on one call of binwrn_run at a time, a second one waits; different
 * models run side by side. binwrn_run allocates nothing. Threads do not survive a fork: a new process loads
 * models of its own.
 */
#ifndef BINWRN_H
#define BINWRN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this header; binwrn_version() is that of the library. */
#define BINWRN_VERSION_MAJOR 0
#define BINWRN_VERSION_MINOR 1
#define BINWRN_VERSION_PATCH 0
#define BINWRN_VERSION "0.1.0"

/* All that a shared library shows. */
#ifdef __GNUC__
#define BINWRN_API __attribute__((visibility("default")))
#else
#define BINWRN_API
#endif

typedef enum {
  BINWRN_OK = 0,
  BINWRN_ERROR_IO = 1,       /* the file cannot be read */
  BINWRN_ERROR_FORMAT = 2,   /* it is no packed model, is damaged, or breaks a rule of the format */
  BINWRN_ERROR_VERSION = 3,  /* a version of the format that this program does not read */
  BINWRN_ERROR_MEMORY = 4,   /* not enough memory, or more than options.max_memory */
  BINWRN_ERROR_ARGUMENT = 5, /* a NULL, a thread count out of range, an unknown or unsupported kernel */
  BINWRN_ERROR_THREADS = 6,  /* the system does not start the threads */
  BINWRN_ERROR_RANGE = 7     /* an image leads to values that are too large to be computed */
} binwrn_error;

#define BINWRN_MESSAGE 160     /* bytes of a message, with its final 0 */
#define BINWRN_MAX_THREADS 256

typedef struct binwrn_model binwrn_model;

/* All zero means: the defaults. */
typedef struct {
  int threads;         /* 1 to BINWRN_MAX_THREADS, the caller's included; 0: one */
  const char *kernel;  /* "avx512", "avx512_adds", "avx2", "neon" or "plain"; NULL: the fastest that the processor has */
  uint64_t max_memory; /* bytes that the loaded model may take; 0: 2 GiB. While it is loaded, the file's
                        * bytes, its coded bits decoded (at most 16 times as many bytes), and up to 128 MiB for its
                        * header (of 16 MiB at most) come on top. */
} binwrn_options;

/* What a model is. Pointers live as long as the model; strings are UTF-8 and end with a 0. */
typedef struct {
  int height, width, channels; /* of an image */
  int classes;
  const char *const *class_names; /* `classes` names, or NULL */
  const char *kernel;
  int threads;
  uint64_t multiply_adds; /* of all convolutions, per image, were the weights floats */
  uint64_t weight_bytes;  /* of the weights, in the order in which they are read */
  uint64_t arena_bytes;   /* activations of one image */
  uint64_t scratch_bytes; /* tables and sums of all threads */
  uint64_t total_bytes;   /* all of the loaded model */
  const uint8_t *golden_image; /* a real image that the file holds, and what the definition of the */
  const float *golden_logits;  /* format, numpy_reader.py, computes of it */
  int covered; /* 1: a checksum of the whole file was right; 0: the file is older and has none */
} binwrn_description;

/* Reads, checks and prepares a model; everything that binwrn_run needs is allocated here.
 * options: NULL for the defaults. message: NULL, or BINWRN_MESSAGE bytes that get one line on an error.
 * On an error *model is NULL. */
BINWRN_API binwrn_error binwrn_load_file(const char *path, const binwrn_options *options, binwrn_model **model,
                              char *message);

/* The same from memory; `data` is not needed afterwards. */
BINWRN_API binwrn_error binwrn_load_memory(const void *data, size_t size, const binwrn_options *options,
                                binwrn_model **model, char *message);

/* NULL of NULL. */
BINWRN_API const binwrn_description *binwrn_describe(const binwrn_model *model);

/* images: uint8 [count, height, width, channels]; logits: float32 [count, classes]. count may be 0.
 * BINWRN_ERROR_RANGE, and logits that must not be used, if a value exceeds 2^64 in a network whose values have
 * no known bound. BINWRN_ERROR_ARGUMENT, and nothing done, for a NULL or more than 2^40 operations (of the network, times
 * count). */
BINWRN_API binwrn_error binwrn_run(binwrn_model *model, const uint8_t *images, size_t count, float *logits);

/* NULL is allowed; not while a call of binwrn_run is under way. */
BINWRN_API void binwrn_free(binwrn_model *model);

BINWRN_API const char *binwrn_error_name(binwrn_error error); /* a few words */

BINWRN_API const char *binwrn_version(void); /* such as "0.1.0" */

#ifdef __cplusplus
}
#endif
#endif
