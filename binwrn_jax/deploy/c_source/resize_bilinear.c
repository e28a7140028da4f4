/* A part of the program that binwrn export --format c writes: what follows the line with the scissors. */
#include <stddef.h>
/* 8< */
/* Where pixel `at` of the result lies between two pixels of an axis; returns the weight of the second. */
static float between(int at, int factor, int size, size_t pixels[2]) {
  const int n = 2 * at + 1 - factor, first = n < 0 ? -1 : n / (2 * factor);
  pixels[0] = (size_t)(first < 0 ? 0 : first);
  pixels[1] = (size_t)(first + 1 < size ? first + 1 : size - 1);
  return (float)(n - 2 * factor * first) / (float)(2 * factor);
}

/* The image `down` times as high and `across` times as wide. */
static void resize_bilinear(float *result, const float *x, int in_height, int in_width, int channels, int down,
                            int across) {
  const size_t row = (size_t)in_width * (size_t)channels;
  int y, column, c;
  for (y = 0; y < in_height * down; y++)
    for (column = 0; column < in_width * across; column++) {
      size_t ys[2], xs[2];
      const float v = between(y, down, in_height, ys), u = between(column, across, in_width, xs);
      for (c = 0; c < channels; c++) {
        const float *upper = x + ys[0] * row + c, *lower = x + ys[1] * row + c;
        const size_t left = xs[0] * (size_t)channels, right = xs[1] * (size_t)channels;
        *result++ = (1 - v) * ((1 - u) * upper[left] + u * upper[right]) +
                    v * ((1 - u) * lower[left] + u * lower[right]);
      }
    }
}
