/* A part of the program that binwrn export --format c writes: what follows the line with the scissors. */
/* 8< */
static void add(float *result, const float *x, const float *y, int count) {
  int i;
  for (i = 0; i < count; i++) result[i] = x[i] + y[i];
}
