/* A part of the program that binwrn export --format c writes: what follows the line with the scissors. */
/* 8< */
static void hard_swish(float *result, const float *x, int count) {
  int i;
  for (i = 0; i < count; i++) result[i] = x[i] * (x[i] < -3 ? 0 : x[i] > 3 ? 6 : x[i] + 3) / 6;
}
