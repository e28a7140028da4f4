/* A part of the program that binwrn export --format c writes: what follows the line with the scissors. */
#include <stddef.h>
/* 8< */
static void global_average(float *logits, const float *x, int pixels, int channels) {
  int p, c;
  for (c = 0; c < channels; c++) {
    float sum = 0;
    for (p = 0; p < pixels; p++) sum += x[(size_t)p * (size_t)channels + (size_t)c];
    logits[c] = sum / (float)pixels;
  }
}
