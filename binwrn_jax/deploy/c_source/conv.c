/* A part of the program that binwrn export --format c writes: what follows the line with the scissors. */
#include <stddef.h>
#include <stdint.h>

static float sums[2];
/* 8< */
struct conv {
  const uint8_t *bits;
  const float *scale, *offset; /* of the multiply-add before, or 0 */
  float min;
  int in_height, in_width, in_channels, out_height, out_width, out_channels;
  int window_height, window_width, stride_y, stride_x, top, left;
};

/* result = convolution of max(min, x * scale + offset), plus `more` unless that is 0 */
static void conv(float *result, const float *x, const float *more, const struct conv *c) {
  int y, column, i, j, channel, k, o;
  for (y = 0; y < c->out_height; y++)
    for (column = 0; column < c->out_width; column++) {
      const uint8_t *bits = c->bits;
      for (o = 0; o < c->out_channels + 1; o++) sums[o] = 0;
      for (i = 0; i < c->window_height; i++)
        for (j = 0; j < c->window_width; j++) {
          const int in_y = y * c->stride_y - c->top + i, in_x = column * c->stride_x - c->left + j;
          const float *pixel;
          if (in_y < 0 || in_y >= c->in_height || in_x < 0 || in_x >= c->in_width) {
            bits += (size_t)((c->in_channels + 3) / 4) * (size_t)((c->out_channels + 1) / 2);
            continue;
          }
          pixel = x + ((size_t)in_y * (size_t)c->in_width + (size_t)in_x) * (size_t)c->in_channels;
          for (channel = 0; channel < c->in_channels; channel += 4) {
            float table[16], in[4] = {0, 0, 0, 0};
            for (k = 0; k < 4 && channel + k < c->in_channels; k++) {
              in[k] = pixel[channel + k];
              if (c->scale) {
                in[k] = in[k] * c->scale[channel + k] + c->offset[channel + k];
                if (in[k] < c->min) in[k] = c->min;
              }
            }
            /* The sixteen signed sums of four inputs; the lower half are the negatives of the upper. */
            for (k = 8; k < 16; k++) {
              table[k] = (k & 1 ? in[0] : -in[0]) + (k & 2 ? in[1] : -in[1]) +
                         (k & 4 ? in[2] : -in[2]) + in[3];
              table[15 - k] = -table[k];
            }
            for (o = 0; o < c->out_channels; o += 2, bits++) {
              sums[o] += table[*bits & 15];
              sums[o + 1] += table[*bits >> 4];
            }
          }
        }
      for (o = 0; o < c->out_channels; o++) *result++ = more ? sums[o] + *more++ : sums[o];
    }
}
