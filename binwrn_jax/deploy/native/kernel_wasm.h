/* WebAssembly with 128 bits of SIMD. There a permutation looks up bytes in a table of four floats only. So the
 * lanes are pixels here: the tables of a row are interleaved, an entry for all of its pixels, and the code of an
 * output channel gives the address of eight sums, which are loaded and added. */
#ifndef BINWRN_KERNEL_WASM_H
#define BINWRN_KERNEL_WASM_H

#include <wasm_simd128.h>

#include "internal.h"

enum { LANES_WASM = 4, BUNDLE_WASM = 5, SLOTS_WASM = 6, TABLE_WASM = 1 << BUNDLE_WASM, LOW_WASM = 2 };

static uint32_t code_wasm(unsigned bits, int slot) { return (uint32_t)bits << (BUNDLE_WASM * slot); }

/* All sums of n inputs, bit i of the index: input i is added. */
static inline void sum_signed(const v128_t *x, int n, v128_t *sums) {
  int i, j;
  sums[0] = wasm_f32x4_neg(x[0]), sums[1] = x[0];
  for (i = 1; i < n; i++)
    for (j = 0; j < 1 << i; j++) {
      sums[j + (1 << i)] = wasm_f32x4_add(sums[j], x[i]);
      sums[j] = wasm_f32x4_sub(sums[j], x[i]);
    }
}

static void interleave_wasm(const float *inputs, size_t step, int begin, int end, size_t apart, int n,
                            const affine *before, int slots, float *tables) {
  float stage[MAX_STAGE] = {0};
  size_t p, i, j;
  int g;
  for (p = 0; p < apart; p++) { /* the inputs, in the place of the first entries */
    const int inside = (int)p >= begin && (int)p < end;
    if (inside) {
      stage_pixel_plain(inputs, n, before, BUNDLE_WASM * slots, stage);
      inputs += step;
    }
    for (g = 0; g < slots; g++)
      for (i = 0; i < BUNDLE_WASM; i++)
        tables[((size_t)g * TABLE_WASM + i) * apart + p] = inside ? stage[(size_t)g * BUNDLE_WASM + i] : 0;
  }
  for (g = 0; g < slots; g++, tables += TABLE_WASM * apart)
    for (p = 0; p < apart; p += 4) {
      v128_t x[BUNDLE_WASM], low[1 << LOW_WASM], high[1 << (BUNDLE_WASM - LOW_WASM)];
      for (i = 0; i < BUNDLE_WASM; i++) x[i] = wasm_v128_load(tables + i * apart + p);
      sum_signed(x, LOW_WASM, low);
      sum_signed(x + LOW_WASM, BUNDLE_WASM - LOW_WASM, high);
      for (i = 0; i < 1 << (BUNDLE_WASM - LOW_WASM); i++)
        for (j = 0; j < 1 << LOW_WASM; j++)
          wasm_v128_store(tables + (i << LOW_WASM | j) * apart + p, wasm_f32x4_add(low[j], high[i]));
    }
}

/* sums[pixel][lane] in two vectors of pixels for each lane, and back. */
static inline void transpose(v128_t *a, v128_t *b, v128_t *c, v128_t *d) {
  const v128_t ab = wasm_i32x4_shuffle(*a, *b, 0, 4, 1, 5), cd = wasm_i32x4_shuffle(*c, *d, 0, 4, 1, 5);
  const v128_t AB = wasm_i32x4_shuffle(*a, *b, 2, 6, 3, 7), CD = wasm_i32x4_shuffle(*c, *d, 2, 6, 3, 7);
  *a = wasm_i64x2_shuffle(ab, cd, 0, 2), *b = wasm_i64x2_shuffle(ab, cd, 1, 3);
  *c = wasm_i64x2_shuffle(AB, CD, 0, 2), *d = wasm_i64x2_shuffle(AB, CD, 1, 3);
}

/* With `apart` constant, compilers make shifts of the multiplications. */
static inline void accumulate_apart(float *sums, int first, const uint32_t *words, const float *tables,
                                    const uint32_t *taps, int tap_count, int slots, size_t apart) {
  v128_t a0, a1, b0, b1, c0, c1, d0, d1;
  int t, g;
  a0 = a1 = b0 = b1 = c0 = c1 = d0 = d1 = wasm_f32x4_splat(0);
  if (!first) {
    a0 = wasm_v128_load(sums), b0 = wasm_v128_load(sums + 4), c0 = wasm_v128_load(sums + 8);
    d0 = wasm_v128_load(sums + 12), a1 = wasm_v128_load(sums + 16), b1 = wasm_v128_load(sums + 20);
    c1 = wasm_v128_load(sums + 24), d1 = wasm_v128_load(sums + 28);
  }
  transpose(&a0, &b0, &c0, &d0);
  transpose(&a1, &b1, &c1, &d1);
#define LOOK_UP(x0, x1, word, slot) \
  { \
    const float *entry = table + (word >> (BUNDLE_WASM * (slot)) & (TABLE_WASM - 1)) * apart; \
    x0 = wasm_f32x4_add(x0, wasm_v128_load(entry)); \
    x1 = wasm_f32x4_add(x1, wasm_v128_load(entry + 4)); \
  }
#define STEP(slot) \
  LOOK_UP(a0, a1, words[0], slot) \
  LOOK_UP(b0, b1, words[1], slot) \
  LOOK_UP(c0, c1, words[2], slot) \
  LOOK_UP(d0, d1, words[3], slot) \
  table += TABLE_WASM * apart;
  for (t = 0; t < tap_count; t++, words += LANES_WASM) {
    const float *table = tables + taps[t];
    if (slots == SLOTS_WASM) {
      STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5)
    } else {
      for (g = 0; g < slots; g++) {
        STEP(g)
      }
    }
  }
  transpose(&a0, &b0, &c0, &d0);
  transpose(&a1, &b1, &c1, &d1);
  wasm_v128_store(sums, a0), wasm_v128_store(sums + 4, b0), wasm_v128_store(sums + 8, c0);
  wasm_v128_store(sums + 12, d0), wasm_v128_store(sums + 16, a1), wasm_v128_store(sums + 20, b1);
  wasm_v128_store(sums + 24, c1), wasm_v128_store(sums + 28, d1);
}

static void accumulate_wasm(float *sums, int pixels, int first, const void *words, const float *tables,
                            const uint32_t *taps, int tap_count, int slots, size_t apart) {
  (void)pixels; /* always PIXELS */
  if (apart == 12) /* 3x3 with stride 1 or 2 */
    accumulate_apart(sums, first, words, tables, taps, tap_count, slots, 12);
  else if (apart == 8) /* 1x1 */
    accumulate_apart(sums, first, words, tables, taps, tap_count, slots, 8);
  else
    accumulate_apart(sums, first, words, tables, taps, tap_count, slots, apart);
}

#endif
