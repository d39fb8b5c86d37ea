// Activations of sixteen values.
#pragma once
#include <cmath>

#include "simd.h"

// s(2u) of GELU's tanh form and its derivative: gelu(h) = h · s, u = √(2/π) (h + 0.044715 h³).
static inline __m512 gelu_gate(__m512 h, __m512& slope) {
  const __m512 root = _mm512_set1_ps(2 * 0.7978845608028654f), cubic = _mm512_set1_ps(0.044715f);
  const __m512 one = _mm512_set1_ps(1.0f), square = _mm512_mul_ps(h, h);
  __m512 twice = _mm512_mul_ps(root, _mm512_fmadd_ps(_mm512_mul_ps(cubic, square), h, h));
  const __m512 triple = _mm512_mul_ps(cubic, _mm512_set1_ps(3.0f));
  slope = _mm512_mul_ps(root, _mm512_fmadd_ps(triple, square, one));
  return _mm512_div_ps(one, _mm512_add_ps(one, exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), twice))));
}

static inline __m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(one, _mm512_add_ps(one, exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

static inline __m512 silu(__m512 x) { return _mm512_mul_ps(x, sigmoid(x)); }

static inline __m512 gelu(__m512 x) {
  __m512 slope;
  return _mm512_mul_ps(x, gelu_gate(x, slope));
}

// A choice by number, as kernels/decoder.py counts them.
static inline __m512 activated(__m512 x, int64_t kind) {
  if (kind == 0) return silu(x);
  if (kind == 1) return gelu(x);
  x = _mm512_max_ps(x, _mm512_setzero_ps());
  return kind == 2 ? x : _mm512_mul_ps(x, x);
}

// cap · tanh(x / cap); x where the cap is infinite.
static inline __m512 capped(__m512 x, float cap) {
  if (std::isinf(cap)) return x;
  const __m512 twice = _mm512_mul_ps(x, _mm512_set1_ps(2.0f / cap));
  const __m512 tanh = _mm512_fmsub_ps(_mm512_set1_ps(2.0f), sigmoid(twice), _mm512_set1_ps(1.0f));
  return _mm512_mul_ps(tanh, _mm512_set1_ps(cap));
}
