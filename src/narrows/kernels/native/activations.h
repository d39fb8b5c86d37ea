// The exponential and activations of sixteen values.
#pragma once
#include <cmath>

#include "lanes.h"

// exp by 2^n · polynomial (Cephes' coefficients); relative error under 2e-7 from -87 to 88, about
// 1e-38 below. The bounds come first: of a pair with NaN, max and min give the second.
static inline Floats exp_ps(Floats x) {
  x = max(spread(-87.3f), x);
  x = min(spread(88.0f), x);
  Floats n = nearest(x * spread(1.44269504088896f));
  Floats r = fnma(n, spread(0.693359375f), x);
  r = fnma(n, spread(-2.12194440e-4f), r);
  Floats y = spread(1.9875691500e-4f);
  y = fma(y, r, spread(1.3981999507e-3f));
  y = fma(y, r, spread(8.3334519073e-3f));
  y = fma(y, r, spread(4.1665795894e-2f));
  y = fma(y, r, spread(1.6666665459e-1f));
  y = fma(y, r, spread(5.0000001201e-1f));
  y = fma(y, r * r, r + spread(1.0f));
  return scaled(y, n);
}

// s(2u) of GELU's tanh form and its derivative: gelu(h) = h · s, u = √(2/π) (h + 0.044715 h³).
static inline Floats gelu_gate(Floats h, Floats& slope) {
  const Floats root = spread(2 * 0.7978845608028654f), cubic = spread(0.044715f);
  const Floats one = spread(1.0f), square = h * h;
  Floats twice = root * fma(cubic * square, h, h);
  const Floats triple = cubic * spread(3.0f);
  slope = root * fma(triple, square, one);
  return one / (one + exp_ps(zeros() - twice));
}

static inline Floats sigmoid(Floats x) {
  const Floats one = spread(1.0f);
  return one / (one + exp_ps(zeros() - x));
}

static inline Floats silu(Floats x) { return x * sigmoid(x); }

static inline Floats gelu(Floats x) {
  Floats slope;
  return x * gelu_gate(x, slope);
}

// A choice by number, as kernels/decoder.py counts them.
static inline Floats activated(Floats x, int64_t kind) {
  if (kind == 0) return silu(x);
  if (kind == 1) return gelu(x);
  x = max(x, zeros());
  return kind == 2 ? x : x * x;
}

// cap · tanh(x / cap); x where the cap is infinite.
static inline Floats capped(Floats x, float cap) {
  if (std::isinf(cap)) return x;
  const Floats twice = x * spread(2.0f / cap);
  const Floats tanh = fms(spread(2.0f), sigmoid(twice), spread(1.0f));
  return tanh * spread(cap);
}
