/* What each kernel has in its own vectors: float kernels, depthwise convolutions, the end of a convolution, functions.
 * A kernel's file defines these, and includes this file; one file may do so several times.
 *
 *   NAME(x), TARGET      names that differ by kernel; the attribute of its functions
 *   VECTOR, WIDTH        of WIDTH floats
 *   LOAD(p), STORE(p, v), SPLAT(x)
 *   LOAD_SOME(p, n), STORE_SOME(p, v, n)   n < WIDTH floats; the others are 0, or not touched
 *   MULTIPLY_ADD(a, b, c), ADD(a, b), MINUS(a)
 *   LARGER(a, b), SMALLER(a, b)            b, where that is NaN
 */

/* Channels of one pixel that a float kernel takes at a time. */
#define FLOAT_SLOTS 32
#define INLINE TARGET __attribute__((always_inline)) static inline
#define SEVEN_PIXELS(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6)
#define EIGHT_PIXELS(M) SEVEN_PIXELS(M) M(7)

/* n inputs of a pixel, `total` with zeros after them, which end in a whole vector. */
INLINE void NAME(stage_pixel)(const float *inputs, int n, const affine *before, int total, float *stage) {
  const VECTOR min = SPLAT(before->min), max = SPLAT(before->max);
  int i;
  for (i = 0; i < total; i += WIDTH) {
    const int some = n - i < WIDTH ? n - i : 0;
    VECTOR v = SPLAT(0);
    if (i < n) v = some ? LOAD_SOME(inputs + i, some) : LOAD(inputs + i);
    if (i < n && before->scale) {
      const VECTOR scale = some ? LOAD_SOME(before->scale + i, some) : LOAD(before->scale + i);
      const VECTOR offset = some ? LOAD_SOME(before->offset + i, some) : LOAD(before->offset + i);
      v = SMALLER(max, LARGER(min, MULTIPLY_ADD(v, scale, offset)));
    }
    STORE(stage + i, v);
    if (some > 0 && before->scale) /* a limit above 0 is none of an input that is not there */
      STORE(stage + i, LOAD_SOME(stage + i, some));
  }
}

TARGET static void NAME(stage)(const float *inputs, size_t step, int pixels, int n, const affine *before, int slots,
                               float *tables) {
  for (; pixels--; inputs += step, tables += FLOAT_SLOTS) NAME(stage_pixel)(inputs, n, before, slots, tables);
}

TARGET static void NAME(accumulate_floats)(float *sums, int pixels, int first, const void *weights, const float *tables,
                                           const uint32_t *taps, int tap_count, int slots, size_t apart) {
  const float *w = weights;
  int t, g;
#define BEGIN(p) VECTOR a##p = first ? SPLAT(0) : LOAD(sums + WIDTH * p);
#define STEP(p) a##p = MULTIPLY_ADD(weight, SPLAT(x[p * FLOAT_SLOTS]), a##p);
#define END(p) STORE(sums + WIDTH * p, a##p);
  (void)apart;
#define SUM(EACH) \
  EACH(BEGIN) \
  for (t = 0; t < tap_count; t++, w += FLOAT_SLOTS * WIDTH) { \
    const float *x = tables + taps[t]; \
    for (g = 0; g < slots; g++, x++) { \
      const VECTOR weight = LOAD(w + g * WIDTH); \
      EACH(STEP) \
    } \
  } \
  EACH(END)
  if (pixels == PIXELS) {
    SUM(EIGHT_PIXELS)
  } else {
    SUM(SEVEN_PIXELS)
  }
#undef SUM
#undef BEGIN
#undef STEP
#undef END
}

/* What `finish` does to a vector of channels, n of them if that is not 0. least: of all numbers and their negatives. */
INLINE VECTOR NAME(finish_vector)(const float *sums, int lanes, int pixels, int n, const affine *after, int i,
                                  const float *more, float *out, size_t channels, int check) {
  VECTOR least = SPLAT(0), scale = SPLAT(1), offset = SPLAT(0);
  const VECTOR min = SPLAT(after->min), max = SPLAT(after->max);
  if (after->scale) {
    scale = n ? LOAD_SOME(after->scale + i, n) : LOAD(after->scale + i);
    offset = n ? LOAD_SOME(after->offset + i, n) : LOAD(after->offset + i);
  }
  for (; pixels--; sums += lanes, out += channels) {
    VECTOR v = n ? LOAD_SOME(sums, n) : LOAD(sums);
    if (check) least = SMALLER(SMALLER(v, MINUS(v)), least);
    if (after->scale) {
      v = SMALLER(max, LARGER(min, MULTIPLY_ADD(v, scale, offset)));
      if (check) least = SMALLER(SMALLER(v, MINUS(v)), least);
    }
    if (more) {
      v = ADD(v, n ? LOAD_SOME(more, n) : LOAD(more));
      if (check) least = SMALLER(SMALLER(v, MINUS(v)), least);
      more += channels;
    }
    if (n)
      STORE_SOME(out, v, n);
    else
      STORE(out, v);
  }
  return least;
}

TARGET static int NAME(finish)(const float *sums, int lanes, int pixels, int n, const affine *after, const float *more,
                               float *out, size_t channels, int check) {
  VECTOR least = SPLAT(0);
  float numbers[WIDTH];
  int i;
  for (i = 0; i < n; i += WIDTH) {
    const int some = n - i < WIDTH ? n - i : 0;
    const float *from = more ? more + i : NULL;
#define FINISH(some, check) NAME(finish_vector)(sums + i, lanes, pixels, some, after, i, from, out + i, channels, check)
    if (check)
      least = SMALLER(FINISH(some, 1), least);
    else if (some)
      FINISH(some, 0);
    else
      FINISH(0, 0);
#undef FINISH
  }
  STORE(numbers, least);
  for (i = 0; check && i < WIDTH; i++)
    if (!(numbers[i] >= -(float)MAX_VALUE)) return 0;
  return 1;
}

/* Sums of `count` pixels side by side, 1 or 4, over the taps from `first` to `last` - 1 of each row. x: the pixel of the
 * first of those taps; `rows` of them, `row` floats apart; `step` from tap to tap, `next` from pixel to pixel. */
typedef struct {
  const float *x, *weights;
  size_t row, step, next, channels, weight_row;
  int rows, taps;
  float *out;
} NAME(window);

INLINE void NAME(depthwise_pixels)(const NAME(window) *w, size_t c, int some, int four) {
  VECTOR a = SPLAT(0), b = a, d = a, e = a;
  int i, j;
#define PICK(p) (some ? LOAD_SOME(p, some) : LOAD(p))
  for (i = 0; i < w->rows; i++) {
    const float *x = w->x + (size_t)i * w->row + c, *weight = w->weights + (size_t)i * w->weight_row + c;
    for (j = 0; j < w->taps; j++, x += w->step, weight += w->channels) {
      const VECTOR v = PICK(weight);
      a = MULTIPLY_ADD(v, PICK(x), a);
      if (!four) continue;
      b = MULTIPLY_ADD(v, PICK(x + w->next), b);
      d = MULTIPLY_ADD(v, PICK(x + 2 * w->next), d);
      e = MULTIPLY_ADD(v, PICK(x + 3 * w->next), e);
    }
  }
#undef PICK
#define PUT(p, v) \
  if (some) \
    STORE_SOME(w->out + (p) * w->channels + c, v, some); \
  else \
    STORE(w->out + (p) * w->channels + c, v)
  PUT(0, a);
  if (!four) return;
  PUT(1, b);
  PUT(2, d);
  PUT(3, e);
#undef PUT
}

TARGET static int NAME(depthwise)(const operation *op, int y, int check) {
  const size_t channels = (size_t)op->in.channels;
  const int top = y * op->stride[0] - op->pads[0][0], gap = op->dilation[0], step = op->dilation[1];
  const int i0 = top < 0 ? (-top + gap - 1) / gap : 0;
  const int bottom = (op->in.height - top + gap - 1) / gap, i1 = bottom < op->window[0] ? bottom : op->window[0];
  NAME(window) w;
  size_t c, at;
  int x, pixels, small = 1;
  w.channels = channels, w.row = (size_t)gap * (size_t)op->in.width * channels, w.step = (size_t)step * channels;
  w.next = (size_t)op->stride[1] * channels, w.weight_row = (size_t)op->window[1] * channels;
  w.rows = i1 > i0 ? i1 - i0 : 0;
  for (x = 0; x < op->out.width; x += pixels) {
    const int left = x * op->stride[1] - op->pads[1][0];
    const int right = (op->in.width - left + step - 1) / step;
    const int j0 = left < 0 ? (-left + step - 1) / step : 0, j1 = right < op->window[1] ? right : op->window[1];
    const int four = j0 == 0 && x + 3 < op->out.width &&
                     left + 3 * op->stride[1] + (op->window[1] - 1) * step < op->in.width;
    pixels = four ? 4 : 1;
    w.taps = j1 > j0 && w.rows ? j1 - j0 : 0;
    if (!w.taps) w.rows = 0;
    at = w.taps ? ((size_t)(top + i0 * gap) * (size_t)op->in.width + (size_t)(left + j0 * step)) * channels : 0;
    w.x = op->x + at;
    w.weights = (const float *)op->conv.weights + (size_t)(i0 * op->window[1] + j0) * channels;
    w.out = op->result + ((size_t)y * (size_t)op->out.width + (size_t)x) * channels;
    if (four)
      for (c = 0; c + WIDTH <= channels; c += WIDTH) NAME(depthwise_pixels)(&w, c, 0, 1);
    else
      for (c = 0; c + WIDTH <= channels; c += WIDTH) NAME(depthwise_pixels)(&w, c, 0, 0);
    if (c < channels) NAME(depthwise_pixels)(&w, c, (int)(channels - c), four);
    small &= NAME(finish)(w.out, op->in.channels, pixels, op->in.channels, &op->after,
                          op->y ? op->y + (w.out - op->result) : NULL, w.out, channels, check);
  }
  return small;
}

TARGET static void NAME(apply)(op_choice f, float alpha, const float *x, float *out, size_t count) {
  apply_function(f, alpha, x, out, count);
}

#undef SEVEN_PIXELS
#undef EIGHT_PIXELS
#undef INLINE
#undef NAME
#undef TARGET
#undef VECTOR
#undef WIDTH
#undef LOAD
#undef STORE
#undef SPLAT
#undef LOAD_SOME
#undef STORE_SOME
#undef MULTIPLY_ADD
#undef ADD
#undef MINUS
#undef LARGER
#undef SMALLER
