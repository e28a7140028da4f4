/* A part of the program that binwrn export --format c writes: what follows the line with the scissors. */
#include <stddef.h>
/* 8< */
static void pool(float *result, const float *x, int average, int in_height, int in_width, int channels,
                 int out_height, int out_width, int window_height, int window_width, int stride_y,
                 int stride_x, int top, int left) {
  int y, column, c, i, j;
  for (y = 0; y < out_height; y++)
    for (column = 0; column < out_width; column++)
      for (c = 0; c < channels; c++) {
        float value = 0;
        int count = 0;
        for (i = y * stride_y - top; i < y * stride_y - top + window_height; i++)
          for (j = column * stride_x - left; j < column * stride_x - left + window_width; j++)
            if (i >= 0 && i < in_height && j >= 0 && j < in_width) {
              const float in = x[((size_t)i * (size_t)in_width + (size_t)j) * (size_t)channels + (size_t)c];
              value = count == 0 ? in : average ? value + in : in > value ? in : value;
              count++;
            }
        *result++ = average ? value / (float)count : value;
      }
}
