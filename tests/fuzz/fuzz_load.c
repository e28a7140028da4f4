/* libFuzzer harness of the native runtime: loads whatever it gets, and runs what loads. docs/native.md has
 * the command. Without a fuzzer, with a main of its own (-DREPLAY), it runs the files it is given. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "binwrn.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  /* The fastest, and one of the others (a processor without it refuses). */
  const char *const kernels[] = {NULL, size % 2 ? "plain" : "avx2"};
  size_t i;
  for (i = 0; i < sizeof kernels / sizeof *kernels; i++) {
    binwrn_options options = {0, NULL, 0};
    char message[BINWRN_MESSAGE];
    binwrn_model *model;
    options.kernel = kernels[i];
    options.threads = size % 8 == 3 ? 2 : 1;
    options.max_memory = 16 << 20;
    if (binwrn_load_memory(data, size, &options, &model, message) == BINWRN_OK) {
      const binwrn_description *d = binwrn_describe(model);
      float *logits = malloc((size_t)d->classes * sizeof *logits);
      if (logits && d->multiply_adds < 1000000 && d->arena_bytes < 1 << 20)
        binwrn_run(model, d->golden_image, 1, logits);
      free(logits);
      binwrn_free(model);
    }
  }
  return 0;
}

#ifdef REPLAY
int main(int argc, char **argv) {
  int i;
  for (i = 1; i < argc; i++) {
    FILE *file = fopen(argv[i], "rb");
    uint8_t *data = malloc(4 << 20);
    size_t size;
    if (!file || !data) return 2;
    size = fread(data, 1, 4 << 20, file);
    fclose(file);
    /* At its exact size, so that a read beyond its end is found. */
    data = realloc(data, size ? size : 1);
    if (!data) return 2;
    LLVMFuzzerTestOneInput(data, size);
    free(data);
  }
  printf("%d files\n", argc - 1);
  return 0;
}
#endif
