/* The functions of `elementwise`, and loops over them that compilers turn into vectors; in a header, so that each
 * kernel compiles them for its processor. Errors are below 1e-6 of the value, or 1e-7. */
#ifndef BINWRN_FUNCTIONS_H
#define BINWRN_FUNCTIONS_H

#include <math.h>
#include <string.h>

#include "internal.h"

/* exp(x) for x <= 0; 0 below -87. exp(x) = 2^n exp(r), and exp(r) by its series (coefficients of Cephes). */
static inline float exp_negative(float x) {
  const float y = x > -87 ? x : -87;
  const int32_t n = (int32_t)(y * 1.44269504f - 0.5f); /* to the nearest */
  const float r = y - (float)n * 0.693359375f + (float)n * 2.12194440e-4f;
  const int32_t bits = (n + 127) * ((int32_t)1 << 23);
  float p = 1.9875691500e-4f, power;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  memcpy(&power, &bits, 4);
  return x > -87 ? (p * r * r + r + 1) * power : 0;
}

static inline float sigmoid(float x) {
  const float e = exp_negative(x < 0 ? x : -x);
  return (x < 0 ? e : 1) / (1 + e);
}

/* Near 0 by its series (Cephes), since 1 - e loses digits there. */
static inline float hyperbolic_tangent(float x) {
  const float e = exp_negative(x < 0 ? 2 * x : -2 * x), z = x * x;
  const float rest = x < 0 ? (e - 1) / (e + 1) : (1 - e) / (1 + e);
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  return z < 0.390625f ? x + x * z * p : rest;
}

static inline float hard_sigmoid(float x) {
  const float y = x + 3 > 0 ? x + 3 : 0;
  return (y < 6 ? y : 6) / 6;
}

/* In double, since 1 + erf loses digits for negative x. */
static inline float gelu(float x) { return (float)(0.5 * (double)x * erfc(-0.70710678118654752 * (double)x)); }

static inline float gelu_tanh(float x) { return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x)); }

static inline void apply_function(op_choice f, float alpha, const float *x, float *out, size_t count) {
  size_t i;
#define EACH_NUMBER(value) \
  for (i = 0; i < count; i++) out[i] = (value); \
  break
  switch (f) {
    case CHOICE_LEAKY_RELU: EACH_NUMBER(x[i] >= 0 ? x[i] : alpha * x[i]);
    case CHOICE_SIGMOID: EACH_NUMBER(sigmoid(x[i]));
    case CHOICE_SILU: EACH_NUMBER(x[i] * sigmoid(x[i]));
    case CHOICE_TANH: EACH_NUMBER(hyperbolic_tangent(x[i]));
    case CHOICE_HARD_SIGMOID: EACH_NUMBER(hard_sigmoid(x[i]));
    case CHOICE_HARD_SWISH: EACH_NUMBER(x[i] * hard_sigmoid(x[i]));
    case CHOICE_GELU: EACH_NUMBER(gelu(x[i]));
    case CHOICE_GELU_TANH: EACH_NUMBER(gelu_tanh(x[i]));
    default: break;
  }
#undef EACH_NUMBER
}

#endif
