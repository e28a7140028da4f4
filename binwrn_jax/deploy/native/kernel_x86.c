/* AVX-512 and AVX2: the table of a bundle is one register, and a permutation looks up a sum for each output
 * channel of a vector. Half of the 2^bundle sums are the negatives of the others: the table has those where
 * the last input is added, and the sign is applied by a multiply-add with +1 or -1, which is exact. */
#if defined(__x86_64__) || defined(__i386__)

#include <immintrin.h>

#include "functions.h"
#include "internal.h"

#define TARGET_16 __attribute__((target("avx512f")))
#define TARGET_8 __attribute__((target("avx2,fma")))

/* Eight accumulators, or seven, and one step in the loop's body: compilers keep all of it in registers. */
#define SEVEN(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6)
#define EIGHT(M) SEVEN(M) M(7)

/* --- AVX-512: bundles of five, sixteen sums ---------------------------------------------------------------
 *
 * A code has five bits: index 0..3 and sign. In slot s, a rotation to the right by 5 s brings the index to the
 * bits 0..3, which the permutation looks at, and the sign to bit 31. */

enum { LANES16 = 16, BUNDLE5 = 5, SLOTS6 = 6, TABLE16 = 16 };

#define NAME(x) x##16
#define TARGET TARGET_16
#define VECTOR __m512
#define WIDTH 16
#define MASK(n) ((__mmask16)((1u << (n)) - 1))
#define LOAD(p) _mm512_loadu_ps(p)
#define STORE(p, v) _mm512_storeu_ps((p), (v))
#define SPLAT(x) _mm512_set1_ps(x)
#define LOAD_SOME(p, n) _mm512_maskz_loadu_ps(MASK(n), (p))
#define STORE_SOME(p, v, n) _mm512_mask_storeu_ps((p), MASK(n), (v))
#define MULTIPLY_ADD(a, b, c) _mm512_fmadd_ps((a), (b), (c))
#define ADD(a, b) _mm512_add_ps((a), (b))
#define MINUS(a) _mm512_sub_ps(_mm512_setzero_ps(), (a))
#define LARGER(a, b) _mm512_max_ps((a), (b))
#define SMALLER(a, b) _mm512_min_ps((a), (b))
#include "kernel_vectors.h"
#undef MASK

/* The sum of bits b: entry i = b if the last input is added, otherwise minus entry ~b. */
static uint32_t code16(unsigned bits, int slot) {
  uint32_t word = bits & 16 ? bits & 15 : 0x80000000u | (~bits & 15);
  return slot ? word << (5 * slot) | word >> (32 - 5 * slot) : word;
}

TARGET_16 static void tables16(const float *x, size_t step, int pixels, int n, const affine *before, int slots,
                               float *tables) {
  float stage[MAX_STAGE];
  const __m512i one = _mm512_set1_epi32(0x3f800000), top = _mm512_set1_epi32((int)0x80000000u);
  const __m512i index = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const int whole = n == BUNDLE5 * slots && !before->scale;
  __m512 sign[4];
  int g, i;
  for (i = 0; i < 4; i++) { /* +1 where bit i of the index is set, otherwise -1 */
    __m512i bit = _mm512_slli_epi32(_mm512_srli_epi32(index, (unsigned)i), 31);
    sign[i] = _mm512_castsi512_ps(_mm512_or_si512(one, _mm512_andnot_si512(bit, top)));
  }
  for (; pixels--; x += step, tables += SLOTS6 * TABLE16) {
    const float *inputs = whole ? x : stage;
    if (!whole) stage_pixel16(x, n, before, BUNDLE5 * slots, stage);
    for (g = 0; g < slots; g++, inputs += BUNDLE5) {
      __m512 sum = _mm512_fmadd_ps(sign[0], _mm512_set1_ps(inputs[0]), _mm512_set1_ps(inputs[4]));
      sum = _mm512_fmadd_ps(sign[1], _mm512_set1_ps(inputs[1]), sum);
      sum = _mm512_fmadd_ps(sign[2], _mm512_set1_ps(inputs[2]), sum);
      sum = _mm512_fmadd_ps(sign[3], _mm512_set1_ps(inputs[3]), sum);
      _mm512_store_ps(tables + g * TABLE16, sum);
    }
  }
}

/* With `adds`, some signs are applied by changing a bit, and those sums by additions: for processors that add elsewhere
 * than they multiply. */
TARGET_16 __attribute__((always_inline)) static inline void sum16(float *sums, int pixels, int first,
                                                                  const uint32_t *words, const float *tables,
                                                                  const uint32_t *taps, int tap_count, int slots,
                                                                  int adds) {
  const __m512i top = _mm512_set1_epi32((int)0x80000000u), one = _mm512_set1_epi32(0x3f800000);
  int t, g;
#define LOAD(p) __m512 a##p = first ? _mm512_setzero_ps() : _mm512_load_ps(sums + LANES16 * p);
#define STEP(p) \
  { \
    const __m512 sum = _mm512_permutexvar_ps(word, _mm512_load_ps(table + p * SLOTS6 * TABLE16)); \
    const __m512i bits = _mm512_castps_si512(sum); \
    if (adds && p % 4 == 3) /* bits ^ (word & top) */ \
      a##p = _mm512_add_ps(a##p, _mm512_castsi512_ps(_mm512_ternarylogic_epi32(bits, word, top, 0x78))); \
    else \
      a##p = _mm512_fmadd_ps(sum, sign, a##p); \
  }
#define STORE(p) _mm512_store_ps(sums + LANES16 * p, a##p);
/* A sign is (word & top) | one: the float +1 or -1. */
#define SUM(EACH) \
  EACH(LOAD) \
  for (t = 0; t < tap_count; t++, words += LANES16) { \
    const float *table = tables + taps[t]; \
    __m512i word = _mm512_load_si512((const void *)words); \
    for (g = 0; g < slots; g++, table += TABLE16) { \
      const __m512 sign = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(word, top, one, 0xEA)); \
      EACH(STEP) \
      word = _mm512_ror_epi32(word, 5); \
    } \
  } \
  EACH(STORE)
  if (pixels == PIXELS) {
    SUM(EIGHT)
  } else {
    SUM(SEVEN)
  }
#undef SUM
#undef LOAD
#undef STEP
#undef STORE
}

TARGET_16 static void accumulate16(float *sums, int pixels, int first, const void *weights, const float *tables,
                                   const uint32_t *taps, int tap_count, int slots, size_t apart) {
  (void)apart;
  sum16(sums, pixels, first, weights, tables, taps, tap_count, slots, 0);
}

TARGET_16 static void accumulate16_adds(float *sums, int pixels, int first, const void *weights, const float *tables,
                                        const uint32_t *taps, int tap_count, int slots, size_t apart) {
  (void)apart;
  sum16(sums, pixels, first, weights, tables, taps, tap_count, slots, 1);
}

extern const kernel binwrn_avx512;
const kernel binwrn_avx512 = {"avx512",
                              {LANES16, BUNDLE5, SLOTS6, TABLE16, 1, tables16, accumulate16, NULL},
                              {LANES16, 1, FLOAT_SLOTS, 1, FLOAT_SLOTS, stage16, accumulate_floats16, NULL},
                              code16,
                              depthwise16,
                              finish16,
                              apply16};

extern const kernel binwrn_avx512_adds;
const kernel binwrn_avx512_adds = {"avx512_adds",
                                   {LANES16, BUNDLE5, SLOTS6, TABLE16, 1, tables16, accumulate16_adds, NULL},
                                   {LANES16, 1, FLOAT_SLOTS, 1, FLOAT_SLOTS, stage16, accumulate_floats16, NULL},
                                   code16,
                                   depthwise16,
                                   finish16,
                                   apply16};

/* --- AVX2: bundles of four, eight sums ----------------------------------------------------------------------
 *
 * A code has four bits: index 0..2, which are all that the permutation looks at, and the sign. */

enum { LANES8 = 8, BUNDLE4 = 4, SLOTS8 = 8, TABLE8 = 8 };

/* Of eight numbers from here, the first n are -1 (all bits set) and the others 0, n = 8 - i. */
static const int32_t some8[16] = {-1, -1, -1, -1, -1, -1, -1, -1};

#define NAME(x) x##8
#define TARGET TARGET_8
#define VECTOR __m256
#define WIDTH 8
#define MASK(n) _mm256_loadu_si256((const __m256i *)(const void *)(some8 + 8 - (n)))
#define LOAD(p) _mm256_loadu_ps(p)
#define STORE(p, v) _mm256_storeu_ps((p), (v))
#define SPLAT(x) _mm256_set1_ps(x)
#define LOAD_SOME(p, n) _mm256_maskload_ps((p), MASK(n))
#define STORE_SOME(p, v, n) _mm256_maskstore_ps((p), MASK(n), (v))
#define MULTIPLY_ADD(a, b, c) _mm256_fmadd_ps((a), (b), (c))
#define ADD(a, b) _mm256_add_ps((a), (b))
#define MINUS(a) _mm256_sub_ps(_mm256_setzero_ps(), (a))
#define LARGER(a, b) _mm256_max_ps((a), (b))
#define SMALLER(a, b) _mm256_min_ps((a), (b))
#include "kernel_vectors.h"
#undef MASK

static uint32_t code8(unsigned bits, int slot) {
  return (uint32_t)(bits & 8 ? bits & 7 : 8 | (~bits & 7)) << (4 * slot);
}

TARGET_8 static void tables8(const float *x, size_t step, int pixels, int n, const affine *before, int slots,
                             float *tables) {
  float stage[MAX_STAGE];
  const __m256 a = _mm256_set_ps(1, -1, 1, -1, 1, -1, 1, -1), b = _mm256_set_ps(1, 1, -1, -1, 1, 1, -1, -1),
               c = _mm256_set_ps(1, 1, 1, 1, -1, -1, -1, -1);
  const int whole = n == BUNDLE4 * slots && !before->scale;
  int g;
  for (; pixels--; x += step, tables += SLOTS8 * TABLE8) {
    const float *inputs = whole ? x : stage;
    if (!whole) stage_pixel8(x, n, before, BUNDLE4 * slots, stage);
    for (g = 0; g < slots; g++, inputs += BUNDLE4) {
      __m256 sum = _mm256_fmadd_ps(a, _mm256_broadcast_ss(inputs), _mm256_broadcast_ss(inputs + 3));
      sum = _mm256_fmadd_ps(b, _mm256_broadcast_ss(inputs + 1), sum);
      sum = _mm256_fmadd_ps(c, _mm256_broadcast_ss(inputs + 2), sum);
      _mm256_store_ps(tables + g * TABLE8, sum);
    }
  }
}

TARGET_8 static void accumulate8(float *sums, int pixels, int first, const void *weights, const float *tables,
                                 const uint32_t *taps, int tap_count, int slots, size_t apart) {
  const uint32_t *words = weights;
  const __m256i top = _mm256_set1_epi32((int)0x80000000u), one = _mm256_set1_epi32(0x3f800000);
  int t, g;
#define LOAD(p) __m256 a##p = first ? _mm256_setzero_ps() : _mm256_load_ps(sums + LANES8 * p);
#define STEP(p) \
  a##p = _mm256_fmadd_ps( \
      _mm256_permutevar8x32_ps(_mm256_load_ps(table + p * SLOTS8 * TABLE8), word), sign, a##p);
#define STORE(p) _mm256_store_ps(sums + LANES8 * p, a##p);
  (void)apart;
#define SUM(EACH) \
  EACH(LOAD) \
  for (t = 0; t < tap_count; t++, words += LANES8) { \
    const float *table = tables + taps[t]; \
    __m256i word = _mm256_load_si256((const __m256i *)(const void *)words); \
    for (g = 0; g < slots; g++, table += TABLE8) { \
      const __m256 sign = _mm256_castsi256_ps( \
          _mm256_or_si256(_mm256_and_si256(_mm256_slli_epi32(word, 28), top), one)); \
      EACH(STEP) \
      word = _mm256_srli_epi32(word, 4); \
    } \
  } \
  EACH(STORE)
  if (pixels == PIXELS) {
    SUM(EIGHT)
  } else {
    SUM(SEVEN)
  }
#undef SUM
#undef LOAD
#undef STEP
#undef STORE
}


extern const kernel binwrn_avx2;
const kernel binwrn_avx2 = {"avx2",
                            {LANES8, BUNDLE4, SLOTS8, TABLE8, 1, tables8, accumulate8, NULL},
                            {LANES8, 1, FLOAT_SLOTS, 1, FLOAT_SLOTS, stage8, accumulate_floats8, NULL},
                            code8,
                            depthwise8,
                            finish8,
                            apply8};

#else
typedef int binwrn_no_x86; /* ISO C wants a declaration in every file */
#endif
