/* NEON (AArch64): as AVX2 in kernel_x86.c, with four output channels in a vector: the eight sums of a bundle of
 * four are two registers, in which TBL looks up bytes. */
#if defined(__aarch64__) && !defined(__AARCH64EB__) /* the order of bytes matters to TBL */

#include <arm_neon.h>

#include "functions.h"
#include "internal.h"

static inline float32x4_t load_some(const float *p, int n) {
  float all[4] = {0, 0, 0, 0};
  int i;
  for (i = 0; i < n; i++) all[i] = p[i];
  return vld1q_f32(all);
}

static inline void store_some(float *p, float32x4_t v, int n) {
  float all[4];
  int i;
  vst1q_f32(all, v);
  for (i = 0; i < n; i++) p[i] = all[i];
}

#define NAME(x) x##_neon
#define TARGET
#define VECTOR float32x4_t
#define WIDTH 4
#define LOAD(p) vld1q_f32(p)
#define STORE(p, v) vst1q_f32((p), (v))
#define SPLAT(x) vdupq_n_f32(x)
#define LOAD_SOME(p, n) load_some((p), (n))
#define STORE_SOME(p, v, n) store_some((p), (v), (n))
#define MULTIPLY_ADD(a, b, c) vfmaq_f32((c), (a), (b))
#define ADD(a, b) vaddq_f32((a), (b))
#define MINUS(a) vnegq_f32(a)
#define LARGER(a, b) vmaxq_f32((a), (b)) /* NaN, where one of them is NaN */
#define SMALLER(a, b) vminq_f32((a), (b))
#include "kernel_vectors.h"

enum { LANES = 8, BUNDLE = 4, SLOTS = 8, TABLE = 8 };

/* A code has four bits: index 0..2 and the sign, as in kernel_x86.c. */
static uint32_t code(unsigned bits, int slot) {
  return (uint32_t)(bits & 8 ? bits & 7 : 8 | (~bits & 7)) << (4 * slot);
}

static void pixel_tables(const float *x, int n, const affine *before, int slots, float *tables) {
  float stage[MAX_STAGE], *inputs = stage;
  static const float signs[2][4] = {{-1, 1, -1, 1}, {-1, -1, 1, 1}};
  const float32x4_t a = vld1q_f32(signs[0]), b = vld1q_f32(signs[1]);
  int g;
  stage_pixel_neon(x, n, before, BUNDLE * slots, stage);
  for (g = 0; g < slots; g++, inputs += BUNDLE, tables += TABLE) {
    const float32x4_t sum = vfmaq_n_f32(vfmaq_n_f32(vdupq_n_f32(inputs[3]), a, inputs[0]), b, inputs[1]);
    const float32x4_t c = vdupq_n_f32(inputs[2]);
    vst1q_f32(tables, vsubq_f32(sum, c));
    vst1q_f32(tables + 4, vaddq_f32(sum, c));
  }
}

static void tables(const float *x, size_t step, int pixels, int n, const affine *before, int slots, float *tables) {
  for (; pixels--; x += step, tables += SLOTS * TABLE) pixel_tables(x, n, before, slots, tables);
}

/* Two vectors of channels, so that each table is loaded once for both. */
static void accumulate(float *sums, int pixels, int first, const void *weights, const float *tables,
                       const uint32_t *taps, int tap_count, int slots, size_t apart) {
  const uint32_t *words = weights;
  const uint32x4_t top = vdupq_n_u32(0x80000000u), one = vdupq_n_u32(0x3f800000), seven = vdupq_n_u32(7);
  const uint32x4_t bytes = vdupq_n_u32(0x03020100u);
  int t, g;
#define SEVEN(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6)
#define EIGHT(M) SEVEN(M) M(7)
#define SIGN(word) vreinterpretq_f32_u32(vorrq_u32(vandq_u32(vshlq_n_u32(word, 28), top), one))
/* Four bytes for each index i: 4 i, 4 i + 1, 4 i + 2, 4 i + 3. */
#define INDEX(word) vreinterpretq_u8_u32(vmlaq_n_u32(bytes, vandq_u32(word, seven), 0x04040404u))
#define LOAD(p) \
  float32x4_t a##p = first ? vdupq_n_f32(0) : vld1q_f32(sums + LANES * p), \
              b##p = first ? vdupq_n_f32(0) : vld1q_f32(sums + LANES * p + 4);
#define STEP(p) \
  { \
    const uint8x16x2_t entries = vld1q_u8_x2(table + p * SLOTS * TABLE * 4); \
    a##p = vfmaq_f32(a##p, vreinterpretq_f32_u8(vqtbl2q_u8(entries, a_index)), a_sign); \
    b##p = vfmaq_f32(b##p, vreinterpretq_f32_u8(vqtbl2q_u8(entries, b_index)), b_sign); \
  }
#define STORE(p) \
  vst1q_f32(sums + LANES * p, a##p); \
  vst1q_f32(sums + LANES * p + 4, b##p);
  (void)apart;
#define SUM(EACH) \
  EACH(LOAD) \
  for (t = 0; t < tap_count; t++, words += LANES) { \
    const uint8_t *table = (const uint8_t *)(tables + taps[t]); \
    uint32x4_t a_word = vld1q_u32(words), b_word = vld1q_u32(words + 4); \
    for (g = 0; g < slots; g++, table += TABLE * 4) { \
      const float32x4_t a_sign = SIGN(a_word), b_sign = SIGN(b_word); \
      const uint8x16_t a_index = INDEX(a_word), b_index = INDEX(b_word); \
      EACH(STEP) \
      a_word = vshrq_n_u32(a_word, 4); \
      b_word = vshrq_n_u32(b_word, 4); \
    } \
  } \
  EACH(STORE)
  if (pixels == PIXELS) {
    SUM(EIGHT)
  } else {
    SUM(SEVEN)
  }
#undef SUM
}

extern const kernel binwrn_neon;
const kernel binwrn_neon = {"neon",
                            {LANES, BUNDLE, SLOTS, TABLE, 1, tables, accumulate, NULL},
                            {4, 1, FLOAT_SLOTS, 1, FLOAT_SLOTS, stage_neon, accumulate_floats_neon, NULL},
                            code,
                            depthwise_neon,
                            finish_neon,
                            apply_neon};

#else
typedef int binwrn_no_neon; /* ISO C wants a declaration in every file */
#endif
