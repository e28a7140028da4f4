/* A part of the program that binwrn export --format c writes: what follows the line with the scissors. */
/* 8< */
/* The image with a border of `value`. */
static void pad(float *result, const float *x, float value, int in_height, int in_width, int channels, int top,
                int bottom, int left, int right) {
  int y, column, c;
  for (y = -top; y < in_height + bottom; y++)
    for (column = -left; column < in_width + right; column++)
      for (c = 0; c < channels; c++)
        *result++ = y < 0 || y >= in_height || column < 0 || column >= in_width ? value : *x++;
}
