/* A part of the program that binwrn export --format c writes: what follows the line with the scissors. */
#include <stddef.h>
/* 8< */
/* Each pixel `down` times below each other, and `across` times side by side. */
static void resize_nearest(float *result, const float *x, int in_height, int in_width, int channels, int down,
                           int across) {
  int y, column, c;
  for (y = 0; y < in_height * down; y++)
    for (column = 0; column < in_width * across; column++)
      for (c = 0; c < channels; c++) {
        const size_t pixel = (size_t)(y / down) * (size_t)in_width + (size_t)(column / across);
        *result++ = x[pixel * (size_t)channels + (size_t)c];
      }
}
