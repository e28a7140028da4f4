/* A part of the program that binwrn export --format c writes: what follows the line with the scissors. */
/* 8< */
/* y has as many pixels as x, or one. */
static void product(float *result, const float *x, const float *y, int pixels, int y_pixels, int channels) {
  int p, c;
  for (p = 0; p < pixels; p++, y += y_pixels > 1 ? channels : 0)
    for (c = 0; c < channels; c++) *result++ = *x++ * y[c];
}
