/* The functions of binwrn.h that load, describe and free a model; binwrn_run is in run.c. */
#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "loader.h"

#define DEFAULT_MEMORY ((uint64_t)2 << 30)

static binwrn_error describe(loader *l, binwrn_model *model) {
  binwrn_description *d = &model->description;
  const json_document *metadata = &l->metadata;
  const json_value *names = binwrn_json_member(metadata, l->root, "class_names"), *name;
  const size_t image = (size_t)(l->golden_image->end - l->golden_image->begin);
  uint8_t *golden;
  d->height = l->values[0].shape.height;
  d->width = l->values[0].shape.width;
  d->channels = l->values[0].shape.channels;
  d->classes = l->classes;
  d->covered = l->covered;
  if (names->count) {
    uint64_t size = 0;
    char **list, *text;
    for (name = binwrn_json_first(metadata, names); name; name = binwrn_json_next(metadata, name))
      size += name->length + 1;
    list = binwrn_take(model, names->count * sizeof *list);
    text = binwrn_take(model, size);
    if (!list || !text) return binwrn_no_memory(l);
    d->class_names = (const char *const *)list;
    for (name = binwrn_json_first(metadata, names); name; name = binwrn_json_next(metadata, name)) {
      memcpy(text, name->text, name->length);
      *list++ = text;
      text += name->length + 1;
    }
  }
  golden = binwrn_take(model, image);
  if (!golden) return binwrn_no_memory(l);
  memcpy(golden, l->data + l->golden_image->begin, image);
  d->golden_image = golden;
  if (model->integer) {
    const double scale = l->values[l->value_count - 1].integers.scale;
    float *logits = binwrn_take(model, (uint64_t)d->classes * sizeof *logits);
    int i;
    for (i = 0; logits && i < d->classes; i++)
      logits[i] = (float)((double)binwrn_read_int(l->data + l->golden_logits->begin + 4 * i) * scale);
    d->golden_logits = logits;
  } else {
    d->golden_logits = binwrn_copy_floats(l, model, l->golden_logits);
  }
  return d->golden_logits ? BINWRN_OK : binwrn_no_memory(l);
}

/* header: `length` bytes that may be changed. */
static binwrn_error load_parts(char *header, size_t length, const unsigned char *data, uint64_t data_size,
                               const binwrn_options *options, binwrn_model **result, char *message) {
  binwrn_model *model = calloc(1, sizeof *model);
  loader loader_, *l = &loader_;
  binwrn_error error;
  int i;
  memset(l, 0, sizeof *l);
  l->data = data;
  l->message = message;
  if (!model) return binwrn_no_memory(l);
  model->max_memory = options && options->max_memory ? options->max_memory : DEFAULT_MEMORY;
  model->description.threads = options && options->threads ? options->threads : 1;
  model->kernel = binwrn_choose_kernel(options ? options->kernel : NULL);
  error = BINWRN_OK;
  if (model->description.threads < 1 || model->description.threads > BINWRN_MAX_THREADS)
    error = binwrn_complain(message, BINWRN_ERROR_ARGUMENT, "%d threads: it must be 1 to %d",
                            model->description.threads, BINWRN_MAX_THREADS);
  else if (!model->kernel)
    error = binwrn_complain(message, BINWRN_ERROR_ARGUMENT, "there is no kernel '%s' for this processor",
                            binwrn_shorten(options->kernel, strlen(options->kernel)).text);
  else
    model->description.kernel = model->kernel->name;
  if (!error) error = binwrn_read_container(l, header, length, data_size);
  if (!error) error = binwrn_check_description(l);
  if (!error) error = binwrn_read_network(l);
  if (!error) error = binwrn_decode_kernels(l, model->description.threads);
  if (!error) error = binwrn_check_tensors(l);
  if (!error) error = binwrn_check_ranges(l);
  if (!error) error = binwrn_plan(l, model);
  if (!error) error = describe(l, model);
  binwrn_json_free(&l->header);
  binwrn_json_free(&l->metadata);
  for (i = 0; i < l->tensor_count; i++) free(l->tensors[i].decoded);
  free(l->tensors);
  free(l->values);
  free(l->nodes);
  free(l->inputs);
  if (!error) {
    model->description.total_bytes = model->bytes + sizeof *model;
    model->pool = binwrn_pool_new(binwrn_work, model, model->description.threads);
    if (!model->pool)
      error = binwrn_complain(message, BINWRN_ERROR_THREADS, "the system does not start %d threads",
                              model->description.threads);
  }
  if (error) {
    binwrn_free(model);
    return error;
  }
  *result = model;
  return BINWRN_OK;
}

binwrn_error binwrn_load_memory(const void *data, size_t size, const binwrn_options *options,
                                binwrn_model **model, char *message) {
  const unsigned char *bytes = data;
  binwrn_error error;
  size_t length = 0;
  char *header;
  if (!model) return binwrn_complain(message, BINWRN_ERROR_ARGUMENT, "no place for the model");
  *model = NULL;
  if (!data) return binwrn_complain(message, BINWRN_ERROR_ARGUMENT, "no data");
  TRY(binwrn_header_length(bytes, size, &length, message));
  header = malloc(length + 1);
  if (!header) return binwrn_complain(message, BINWRN_ERROR_MEMORY, "not enough memory");
  memcpy(header, bytes + 8, length);
  error = load_parts(header, length, bytes + 8 + length, size - 8 - length, options, model, message);
  free(header);
  return error;
}

binwrn_error binwrn_load_file(const char *path, const binwrn_options *options, binwrn_model **model,
                              char *message) {
  struct stat status;
  unsigned char *bytes = NULL;
  binwrn_error error = BINWRN_OK;
  size_t size = 0, length = 0;
  FILE *file;
  if (!model) return binwrn_complain(message, BINWRN_ERROR_ARGUMENT, "no place for the model");
  *model = NULL;
  if (!path) return binwrn_complain(message, BINWRN_ERROR_ARGUMENT, "no path");
  if (stat(path, &status) != 0) return binwrn_complain(message, BINWRN_ERROR_IO, "the file cannot be read");
  if (!S_ISREG(status.st_mode)) return binwrn_complain(message, BINWRN_ERROR_FORMAT, "not a regular file");
  if (status.st_size < 0 || (uint64_t)status.st_size > (uint64_t)MAX_HEADER + MAX_DATA + 8)
    return binwrn_complain(message, BINWRN_ERROR_FORMAT, "not a packed model: too large");
  file = fopen(path, "rb");
  if (!file) return binwrn_complain(message, BINWRN_ERROR_IO, "the file cannot be read");
  size = (size_t)status.st_size;
  bytes = malloc(size + 1);
  if (!bytes)
    error = binwrn_complain(message, BINWRN_ERROR_MEMORY, "not enough memory");
  else if (fread(bytes, 1, size, file) != size)
    error = binwrn_complain(message, BINWRN_ERROR_IO, "the file cannot be read to its end");
  fclose(file);
  if (!error) error = binwrn_header_length(bytes, size, &length, message);
  if (!error)
    error = load_parts((char *)bytes + 8, length, bytes + 8 + length, size - 8 - length, options, model, message);
  free(bytes);
  return error;
}

const binwrn_description *binwrn_describe(const binwrn_model *model) {
  return model ? &model->description : NULL;
}

void binwrn_free(binwrn_model *model) {
  size_t i;
  if (!model) return;
  binwrn_pool_free(model->pool);
  for (i = 0; i < model->block_count; i++) free(model->blocks[i]);
  free(model->blocks);
  free(model);
}

const char *binwrn_error_name(binwrn_error error) {
  switch (error) {
    case BINWRN_OK: return "no error";
    case BINWRN_ERROR_IO: return "the file cannot be read";
    case BINWRN_ERROR_FORMAT: return "not a valid packed model";
    case BINWRN_ERROR_VERSION: return "a newer version of the format";
    case BINWRN_ERROR_MEMORY: return "not enough memory";
    case BINWRN_ERROR_ARGUMENT: return "a wrong argument";
    case BINWRN_ERROR_RANGE: return "an image leads to values that are too large";
    case BINWRN_ERROR_THREADS: return "threads cannot be started";
  }
  return "unknown error";
}

const char *binwrn_version(void) { return BINWRN_VERSION; }
