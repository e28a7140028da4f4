/* C for any processor: groups of four, sixteen sums each. And the choice among the kernels. */
#include <string.h>

#include "internal.h"

enum { LANES = 8, GROUP = 4, SLOTS = 8, TABLE = 16 };

static uint32_t code(unsigned bits, int slot) { return (uint32_t)bits << (4 * slot); }

static void tables(const float *x, int n, const affine *before, int slots, float *tables) {
  float stage[MAX_STAGE], *inputs = stage;
  int g, i;
  stage_inputs(x, n, before, GROUP * slots, stage);
  for (g = 0; g < slots; g++, inputs += GROUP, tables += TABLE) {
    const float a = inputs[0], b = inputs[1], c = inputs[2], d = inputs[3];
    const float low[4] = {-a - b, a - b, b - a, a + b}, high[4] = {-c - d, c - d, d - c, c + d};
    for (i = 0; i < TABLE; i++) tables[i] = low[i & 3] + high[i >> 2];
  }
}

static void accumulate(float *sums, const uint32_t *words, const float *tables, const uint32_t *taps,
                       int tap_count, int slots) {
  int t, g, p, lane;
  for (t = 0; t < tap_count; t++, words += LANES)
    for (g = 0; g < slots; g++)
      for (p = 0; p < PIXELS; p++) {
        const float *table = tables + taps[t] + (p * SLOTS + g) * TABLE;
        for (lane = 0; lane < LANES; lane++)
          sums[p * LANES + lane] += table[words[lane] >> (4 * g) & 15];
      }
}

const kernel binwrn_plain = {"plain", LANES, GROUP, SLOTS, TABLE, code, tables, accumulate};

#if defined(__x86_64__) || defined(__i386__)
extern const kernel binwrn_avx2, binwrn_avx512;
#endif
#if defined(__aarch64__) && !defined(__AARCH64EB__)
extern const kernel binwrn_neon;
#endif

const kernel *binwrn_choose_kernel(const char *name) {
  const kernel *found[3];
  int count = 0, i;
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) found[count++] = &binwrn_avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found[count++] = &binwrn_avx2;
#elif defined(__aarch64__) && !defined(__AARCH64EB__)
  found[count++] = &binwrn_neon; /* part of the architecture */
#endif
  found[count++] = &binwrn_plain;
  if (!name) return found[0];
  for (i = 0; i < count; i++)
    if (strcmp(found[i]->name, name) == 0) return found[i];
  return NULL;
}
