/* A part of the program that binwrn export --format c writes: what follows the line with the scissors. */
/* 8< */
static void pad_channels(float *result, const float *x, int pixels, int channels, int out_channels) {
  int p, c;
  for (p = 0; p < pixels; p++)
    for (c = 0; c < out_channels; c++) *result++ = c < channels ? *x++ : 0;
}
