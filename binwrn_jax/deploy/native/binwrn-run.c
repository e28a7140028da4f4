/* binwrn-run [--threads N] [--kernel NAME] [--repeat N] MODEL IMAGE...
 *
 * Names what is on each image: a PPM (P6) or PGM (P5) file of the model's size, or raw bytes, as many images
 * of H x W x C as the file has. `golden` is the image in the model itself, with a comparison of its logits. */
#define _POSIX_C_SOURCE 200809L

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "binwrn.h"

static int fail(const char *what, const char *why) {
  fprintf(stderr, "error: %s: %s\n", what, why);
  return 2;
}

static double seconds(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* All of a file; NULL if it cannot be read. */
static unsigned char *read_all(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  unsigned char *data = NULL, *larger;
  size_t capacity = 0, got;
  *size = 0;
  if (!file) return NULL;
  do {
    capacity = capacity ? 2 * capacity : 1 << 16;
    larger = realloc(data, capacity);
    if (!larger) break;
    data = larger;
    got = fread(data + *size, 1, capacity - *size, file);
    *size += got;
  } while (*size == capacity);
  if (ferror(file) || !larger) {
    free(data);
    data = NULL;
  }
  fclose(file);
  return data;
}

/* Reads a number of a PNM header; 0 if there is none. */
static long number(const unsigned char *data, size_t size, size_t *at) {
  long result = 0;
  int comment = 0;
  for (; *at < size; ++*at) {
    unsigned char c = data[*at];
    if (comment)
      comment = c != '\n';
    else if (c == '#')
      comment = 1;
    else if (c != ' ' && c != '\t' && c != '\n' && c != '\r')
      break;
  }
  for (; *at < size && data[*at] >= '0' && data[*at] <= '9' && result < 1000000; ++*at)
    result = 10 * result + (data[*at] - '0');
  return result;
}

/* Where the pixels begin, and how many images there are; an error as text, or NULL. */
static const char *find_pixels(const unsigned char *data, size_t size, const binwrn_description *d, size_t *start,
                               size_t *count) {
  const size_t image = (size_t)d->height * (size_t)d->width * (size_t)d->channels;
  const int pnm = size > 2 && data[0] == 'P' && (data[1] == '5' || data[1] == '6');
  *start = 0;
  if (pnm && size % image != 0) {
    size_t at = 2;
    const long width = number(data, size, &at), height = number(data, size, &at), most = number(data, size, &at);
    if ((data[1] == '6') != (d->channels == 3) || (data[1] == '5' && d->channels != 1))
      return "a PPM (P6) image is for models with 3 channels, a PGM (P5) for 1";
    if (width != d->width || height != d->height || most != 255)
      return "its size is not the model's, or its maximum is not 255";
    *start = at + 1;
    *count = 1;
    return size - at > image ? NULL : "it is truncated";
  }
  *count = size / image;
  return size && size % image == 0 ? NULL : "neither PPM, PGM, nor a whole number of raw images";
}

static void print_result(const char *path, size_t index, const binwrn_description *d, const float *logits) {
  int best = 0, i;
  const char *c;
  for (i = 1; i < d->classes; i++)
    if (logits[i] > logits[best]) best = i;
  printf("%s[%lu] %d ", path, (unsigned long)index, best);
  for (c = d->class_names ? d->class_names[best] : "-"; *c; c++) putchar((unsigned char)*c < 32 || *c == 127 ? '?' : *c);
  for (i = 0; i < d->classes; i++) printf(" %.6g", (double)logits[i]);
  putchar('\n');
}

/* Most memory that this process has had in use, in MB; 0 where the system does not say. */
static double peak_memory(void) {
  FILE *file = fopen("/proc/self/status", "r");
  char line[128];
  unsigned long kilobytes = 0;
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, "VmHWM: %lu", &kilobytes) == 1) break;
  if (file) fclose(file);
  return (double)kilobytes / 1024;
}

/* A number from 1 on; 0 if the text is none. */
static int positive(const char *text) {
  char *end;
  const long value = strtol(text, &end, 10);
  return *end || value < 1 || value > 1000000 ? 0 : (int)value;
}

/* Compares the logits of the golden image with those in the file; the exit status. */
static int check_golden(const char *path, const binwrn_description *d, const float *logits) {
  double largest = 0, error = 0;
  int c;
  for (c = 0; c < d->classes; c++) {
    largest = fmax(largest, fabs((double)d->golden_logits[c]));
    error = fmax(error, fabs((double)logits[c] - (double)d->golden_logits[c]));
  }
  printf("largest difference from the golden logits: %.2e of the largest logit\n", error / largest);
  return error <= 1e-4 * largest ? 0 : fail(path, "the golden logits are not reproduced");
}

/* Runs images `repeat` times and prints the least time. */
static binwrn_error run_timed(binwrn_model *model, const uint8_t *images, size_t count, float *logits, int repeat) {
  double best = 1e30, processor = 1e30;
  binwrn_error error = BINWRN_OK;
  int r;
  for (r = 0; r < repeat && !error; r++) {
    const double wall = seconds(CLOCK_MONOTONIC), used = seconds(CLOCK_PROCESS_CPUTIME_ID);
    error = binwrn_run(model, images, count, logits);
    best = fmin(best, seconds(CLOCK_MONOTONIC) - wall);
    processor = fmin(processor, seconds(CLOCK_PROCESS_CPUTIME_ID) - used);
  }
  if (!error)
    fprintf(stderr, "%lu images in %.2f ms, processor time %.2f ms (least of %d runs)\n", (unsigned long)count, 1e3 * best,
            1e3 * processor, repeat);
  return error;
}

/* Names what is in a file, or on the golden image of the model at `path`; the exit status. */
static int classify(const char *path, binwrn_model *model, const char *file, int repeat) {
  const binwrn_description *d = binwrn_describe(model);
  const int golden = strcmp(file, "golden") == 0;
  size_t size = 0, start = 0, count = 1, n;
  unsigned char *data = golden ? NULL : read_all(file, &size);
  const char *why = golden ? NULL : data ? find_pixels(data, size, d, &start, &count) : "cannot be read";
  float *logits = why ? NULL : malloc(count * (size_t)d->classes * sizeof *logits);
  int status = 0;
  if (!why && !logits) why = "not enough memory";
  if (!why) {
    const binwrn_error error = run_timed(model, golden ? d->golden_image : data + start, count, logits, repeat);
    if (error) why = binwrn_error_name(error);
  }
  if (why) {
    status = fail(file, why);
  } else {
    for (n = 0; n < count; n++) print_result(file, n, d, logits + n * (size_t)d->classes);
    if (golden) status = check_golden(path, d, logits);
  }
  free(logits);
  free(data);
  return status;
}

int main(int argc, char **argv) {
  binwrn_options options = {0, NULL, 0};
  const binwrn_description *d;
  binwrn_model *model;
  char message[BINWRN_MESSAGE];
  const char *path;
  int i = 1, repeat = 1, status = 0, wrong = 0;
  double begin = seconds(CLOCK_MONOTONIC);
  for (; i + 1 < argc && strncmp(argv[i], "--", 2) == 0; i += 2) {
    if (strcmp(argv[i], "--threads") == 0)
      wrong |= !(options.threads = positive(argv[i + 1]));
    else if (strcmp(argv[i], "--kernel") == 0)
      options.kernel = argv[i + 1];
    else if (strcmp(argv[i], "--repeat") == 0)
      wrong |= !(repeat = positive(argv[i + 1]));
    else
      break;
  }
  if (argc - i < 2 || wrong || strncmp(argv[i], "--", 2) == 0) {
    fprintf(stderr, "usage: binwrn-run [--threads N] [--kernel NAME] [--repeat N] MODEL IMAGE.ppm|raw|golden...\n");
    return 2;
  }
  path = argv[i++];
  if (binwrn_load_file(path, &options, &model, message) != BINWRN_OK) return fail(path, message);
  d = binwrn_describe(model);
  fprintf(stderr, "%s: %d x %d x %d, %d classes, kernel %s, %d threads, %lu kB in memory, loaded in %.1f ms\n", path,
          d->height, d->width, d->channels, d->classes, d->kernel, d->threads,
          (unsigned long)(d->total_bytes / 1024), 1e3 * (seconds(CLOCK_MONOTONIC) - begin));
  if (!d->covered)
    fprintf(stderr, "note: %s is older than the checksum of all bytes: damage is found in the convolutions only\n", path);
  for (; i < argc && !status; i++) status = classify(path, model, argv[i], repeat);
  binwrn_free(model);
  fprintf(stderr, "peak memory %.1f MB\n", peak_memory());
  return status;
}
