/* A part of the program that binwrn export --format c writes: what follows the line with the scissors. */
#include <math.h>
/* 8< */
static void gelu_tanh(float *result, const float *x, int count) {
  int i;
  for (i = 0; i < count; i++) result[i] = x[i] / (1 + expf(-1.59576912f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
}
