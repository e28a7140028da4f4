/* A part of the program that binwrn export --format c writes: what follows the line with the scissors. */
#include <stddef.h>
#include <stdint.h>

struct window {
  int in_height, in_width, in_channels, out_height, out_width, out_channels;
  int height, width, stride_y, stride_x, top, left, groups, dilation_y, dilation_x;
};
/* 8< */
/* Convolution with the weights +1 and -1, the bits of an output channel in a row that begins with a byte. Each group of
 * output channels sees its group of input channels. */
static void sign_conv(float *result, const float *x, const uint8_t *bits, const struct window *w) {
  const int inputs = w->in_channels / w->groups, outputs = w->out_channels / w->groups;
  const size_t row = ((size_t)(w->height * w->width) * (size_t)inputs + 7) / 8;
  int y, column, o, i, j, c;
  for (y = 0; y < w->out_height; y++)
    for (column = 0; column < w->out_width; column++)
      for (o = 0; o < w->out_channels; o++) {
        const uint8_t *weights = bits + (size_t)o * row;
        float sum = 0;
        for (i = 0; i < w->height; i++)
          for (j = 0; j < w->width; j++) {
            const int in_y = y * w->stride_y - w->top + i * w->dilation_y;
            const int in_x = column * w->stride_x - w->left + j * w->dilation_x;
            const float *pixel;
            size_t k = (size_t)(i * w->width + j) * (size_t)inputs;
            if (in_y < 0 || in_y >= w->in_height || in_x < 0 || in_x >= w->in_width) continue;
            pixel = x + ((size_t)in_y * (size_t)w->in_width + (size_t)in_x) * (size_t)w->in_channels;
            pixel += o / outputs * inputs;
            for (c = 0; c < inputs; c++, k++) sum += weights[k / 8] >> k % 8 & 1 ? pixel[c] : -pixel[c];
          }
        *result++ = sum;
      }
}
