// A row of the stream, normalised.
#pragma once
#include <cmath>
#include <cstdint>

#include "simd.h"

struct Norm {
  const float *weight, *bias;  // null where there is none
};

// Over the root of its mean square, or of its variance where it is centred.
static inline void normed(const float* x, const Norm& norm, int64_t width, float epsilon,
                          bool centred, float* out) {
  __m512 sum = _mm512_setzero_ps(), squares = sum;
  if (centred)
    each16(width, [&](int64_t d, auto lanes) {
      sum = _mm512_add_ps(sum, load_float(x + d, lanes));
    });
  const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / width);
  each16(width, [&](int64_t d, auto lanes) {
    const __m512 value = kept(_mm512_sub_ps(load_float(x + d, lanes), mean), lanes);
    squares = _mm512_fmadd_ps(value, value, squares);
  });
  const float factor = 1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / width + epsilon);
  each16(width, [&](int64_t d, auto lanes) {
    const __m512 value = _mm512_sub_ps(load_float(x + d, lanes), mean);
    __m512 y = _mm512_mul_ps(value, _mm512_set1_ps(factor));
    y = _mm512_mul_ps(y, load_float(norm.weight + d, lanes));
    if (norm.bias) y = _mm512_add_ps(y, load_float(norm.bias + d, lanes));
    store_float(out + d, y, lanes);
  });
}
