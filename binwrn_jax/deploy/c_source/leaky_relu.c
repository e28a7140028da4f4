/* A part of the program that binwrn export --format c writes: what follows the line with the scissors. */
/* 8< */
static void leaky_relu(float *result, const float *x, float alpha, int count) {
  int i;
  for (i = 0; i < count; i++) result[i] = x[i] >= 0 ? x[i] : alpha * x[i];
}
