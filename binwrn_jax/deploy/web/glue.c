/* What binwrn.js calls: the runtime of ../native with arguments that need no knowledge of C's structures. */
#include <stdlib.h>
#include <string.h>

#include "binwrn.h"

#define EXPORT(name) __attribute__((export_name(#name)))

static char message[BINWRN_MESSAGE];

EXPORT(allocate) void *web_allocate(size_t size) { return malloc(size); }
EXPORT(release) void web_release(void *block) { free(block); }

/* The text of the last error, UTF-8. */
EXPORT(message) const char *web_message(void) { return message; }
EXPORT(message_length) size_t web_message_length(void) { return strlen(message); }

/* A model, or 0 and a message. `data` is not needed afterwards. */
EXPORT(load) binwrn_model *web_load(const void *data, size_t size, const char *kernel) {
  binwrn_options options;
  binwrn_model *model;
  memset(&options, 0, sizeof options);
  options.kernel = kernel;
  if (binwrn_load_memory(data, size, &options, &model, message) != BINWRN_OK) return NULL;
  return model;
}

EXPORT(free_model) void web_free(binwrn_model *model) { binwrn_free(model); }

EXPORT(height) int web_height(const binwrn_model *model) { return binwrn_describe(model)->height; }
EXPORT(width) int web_width(const binwrn_model *model) { return binwrn_describe(model)->width; }
EXPORT(channels) int web_channels(const binwrn_model *model) { return binwrn_describe(model)->channels; }
EXPORT(classes) int web_classes(const binwrn_model *model) { return binwrn_describe(model)->classes; }
EXPORT(kernel) const char *web_kernel(const binwrn_model *model) { return binwrn_describe(model)->kernel; }
EXPORT(multiply_adds) double web_multiply_adds(const binwrn_model *model) {
  return (double)binwrn_describe(model)->multiply_adds;
}

/* 0, or an error and its text as the message. */
EXPORT(run) int web_run(binwrn_model *model, const uint8_t *images, size_t count, float *logits) {
  const binwrn_error error = binwrn_run(model, images, count, logits);
  if (error) {
    strncpy(message, binwrn_error_name(error), sizeof message - 1);
    message[sizeof message - 1] = 0;
  }
  return error;
}
