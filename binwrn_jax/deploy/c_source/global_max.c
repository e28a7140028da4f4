/* A part of the program that binwrn export --format c writes: what follows the line with the scissors. */
/* 8< */
static void global_max(float *result, const float *x, int pixels, int channels) {
  int p, c;
  for (c = 0; c < channels; c++) result[c] = x[c];
  for (p = 1; p < pixels; p++)
    for (c = 0, x += channels; c < channels; c++)
      if (x[c] > result[c]) result[c] = x[c];
}
