/* A part of the program that binwrn export --format c writes: what follows the line with the scissors. */
/* 8< */
/* result = min(max, max(min, x * scale + offset)) */
static void clip(float *result, const float *x, const float *scale, const float *offset, float min, float max,
                 int pixels, int channels) {
  int p, c;
  for (p = 0; p < pixels; p++)
    for (c = 0; c < channels; c++, x++, result++) {
      const float value = *x * scale[c] + offset[c];
      *result = value < min ? min : value > max ? max : value;
    }
}
