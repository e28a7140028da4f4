/* A part of the program that binwrn export --format c writes: what follows the line with the scissors. */
/* 8< */
/* Copies the channels of x to those of the result from `first` on. */
static void concat(float *result, const float *x, int pixels, int channels, int first, int out_channels) {
  int p, c;
  for (p = 0, result += first; p < pixels; p++, result += out_channels)
    for (c = 0; c < channels; c++) result[c] = *x++;
}
