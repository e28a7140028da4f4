/* A part of the program that binwrn export --format c writes: what follows the line with the scissors. */
#include <math.h>
/* 8< */
static void hyperbolic_tangent(float *result, const float *x, int count) {
  int i;
  for (i = 0; i < count; i++) result[i] = tanhf(x[i]);
}
