/* A part of the program that binwrn export --format c writes: what follows the line with the scissors. */
#include <stddef.h>

struct window {
  int in_height, in_width, in_channels, out_height, out_width, out_channels;
  int height, width, stride_y, stride_x, top, left, groups, dilation_y, dilation_x;
};
/* 8< */
/* Convolution with float weights. Each group of output channels sees its group of input channels. */
static void float_conv(float *result, const float *x, const float *weights, const struct window *w) {
  const int inputs = w->in_channels / w->groups, outputs = w->out_channels / w->groups;
  int y, column, o, i, j, c;
  for (y = 0; y < w->out_height; y++)
    for (column = 0; column < w->out_width; column++) {
      const float *weight = weights;
      for (o = 0; o < w->out_channels; o++) {
        float sum = 0;
        for (i = 0; i < w->height; i++)
          for (j = 0; j < w->width; j++, weight += inputs) {
            const int in_y = y * w->stride_y - w->top + i * w->dilation_y;
            const int in_x = column * w->stride_x - w->left + j * w->dilation_x;
            const float *pixel;
            if (in_y < 0 || in_y >= w->in_height || in_x < 0 || in_x >= w->in_width) continue;
            pixel = x + ((size_t)in_y * (size_t)w->in_width + (size_t)in_x) * (size_t)w->in_channels;
            pixel += o / outputs * inputs;
            for (c = 0; c < inputs; c++) sum += weight[c] * pixel[c];
          }
        *result++ = sum;
      }
    }
}
