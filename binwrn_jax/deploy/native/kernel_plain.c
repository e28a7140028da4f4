/* C for any processor: bundles of four, sixteen sums each. With it the kernel for WebAssembly, in which only the signs
 * are other; and the choice among the kernels. */
#include <string.h>

#include "functions.h"
#include "internal.h"

/* Four floats that the compiler turns into what the processor has. How they are passed, of which compilers warn where
 * it has no vectors, does not matter in functions of this file alone. */
#pragma GCC diagnostic ignored "-Wpsabi"
typedef float floats4 __attribute__((vector_size(16)));
typedef int32_t bits4 __attribute__((vector_size(16)));
typedef float floats4_at __attribute__((vector_size(16), aligned(4), may_alias));

static inline floats4 load_some(const float *p, int n) {
  floats4 v = {0, 0, 0, 0};
  int i;
  for (i = 0; i < n; i++) v[i] = p[i];
  return v;
}

static inline void store_some(float *p, floats4 v, int n) {
  int i;
  for (i = 0; i < n; i++) p[i] = v[i];
}

static inline floats4 choose(bits4 mask, floats4 a, floats4 b) {
  return (floats4)((mask & (bits4)a) | (~mask & (bits4)b));
}

#define NAME(x) x##_plain
#define TARGET
#define VECTOR floats4
#define WIDTH 4
#define LOAD(p) ((floats4) * (const floats4_at *)(p))
#define STORE(p, v) (*(floats4_at *)(p) = (v))
#define SPLAT(x) ((floats4){(x), (x), (x), (x)})
#define LOAD_SOME(p, n) load_some((p), (n))
#define STORE_SOME(p, v, n) store_some((p), (v), (n))
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#define ADD(a, b) ((a) + (b))
#define MINUS(a) (-(a))
#define LARGER(a, b) choose((bits4)((a) > (b)), (a), (b))
#define SMALLER(a, b) choose((bits4)((a) < (b)), (a), (b))
#include "kernel_vectors.h"

enum { LANES = 8, BUNDLE = 4, SLOTS = 8, TABLE = 16 };

static uint32_t code(unsigned bits, int slot) { return (uint32_t)bits << (4 * slot); }

static void pixel_tables(const float *x, int n, const affine *before, int slots, float *tables) {
  float stage[MAX_STAGE], *inputs = stage;
  int g, i;
  stage_pixel_plain(x, n, before, BUNDLE * slots, stage);
  for (g = 0; g < slots; g++, inputs += BUNDLE, tables += TABLE) {
    const float a = inputs[0], b = inputs[1], c = inputs[2], d = inputs[3];
    const float low[4] = {-a - b, a - b, b - a, a + b}, high[4] = {-c - d, c - d, d - c, c + d};
    for (i = 0; i < TABLE; i++) tables[i] = low[i & 3] + high[i >> 2];
  }
}

static void tables(const float *x, size_t step, int pixels, int n, const affine *before, int slots, float *tables) {
  for (; pixels--; x += step, tables += SLOTS * TABLE) pixel_tables(x, n, before, slots, tables);
}

static void accumulate(float *sums, int pixels, int first, const void *weights, const float *tables,
                       const uint32_t *taps, int tap_count, int slots, size_t apart) {
  const uint32_t *words = weights;
  int t, g, p, lane;
  (void)apart;
  for (p = 0; first && p < pixels * LANES; p++) sums[p] = 0;
  for (t = 0; t < tap_count; t++, words += LANES)
    for (g = 0; g < slots; g++)
      for (p = 0; p < pixels; p++) {
        const float *table = tables + taps[t] + (p * SLOTS + g) * TABLE;
        for (lane = 0; lane < LANES; lane++)
          sums[p * LANES + lane] += table[words[lane] >> (4 * g) & 15];
      }
}

const kernel binwrn_plain = {"plain",
                             {LANES, BUNDLE, SLOTS, TABLE, 1, tables, accumulate, NULL},
                             {4, 1, FLOAT_SLOTS, 1, FLOAT_SLOTS, stage_plain, accumulate_floats_plain, NULL},
                             code,
                             depthwise_plain,
                             finish_plain,
                             apply_plain};

#ifdef __wasm_simd128__
#include "kernel_wasm.h"
static const kernel binwrn_wasm = {
    "wasm",
    {LANES_WASM, BUNDLE_WASM, SLOTS_WASM, TABLE_WASM, 1, NULL, accumulate_wasm, interleave_wasm},
    {4, 1, FLOAT_SLOTS, 1, FLOAT_SLOTS, stage_plain, accumulate_floats_plain, NULL},
    code_wasm,
    depthwise_plain,
    finish_plain,
    apply_plain};
#endif
#if defined(__x86_64__) || defined(__i386__)
extern const kernel binwrn_avx2, binwrn_avx512, binwrn_avx512_adds;
#endif
#if defined(__aarch64__) && !defined(__AARCH64EB__)
extern const kernel binwrn_neon;
#endif

const kernel *binwrn_choose_kernel(const char *name) {
  const kernel *found[4];
  int count = 0, i;
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) {
    const int adds = __builtin_cpu_is("amd"); /* measured on Zen 4: 10 % faster; Intel has no units for additions alone */
    found[count++] = adds ? &binwrn_avx512_adds : &binwrn_avx512;
    found[count++] = adds ? &binwrn_avx512 : &binwrn_avx512_adds;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found[count++] = &binwrn_avx2;
#elif defined(__aarch64__) && !defined(__AARCH64EB__)
  found[count++] = &binwrn_neon; /* part of the architecture */
#elif defined(__wasm_simd128__)
  found[count++] = &binwrn_wasm;
#endif
  found[count++] = &binwrn_plain;
  if (!name) return found[0];
  for (i = 0; i < count; i++)
    if (strcmp(found[i]->name, name) == 0) return found[i];
  return NULL;
}
