// A row of the stream, normalised.
#pragma once
#include <cmath>
#include <cstdint>

#include "lanes.h"

struct Norm {
  const float *weight, *bias;  // null where there is none
};

// Over the root of its mean square, or of its variance where it is centred.
static inline void normed(const float* x, const Norm& norm, int64_t width, float epsilon,
                          bool centred, float* out) {
  Floats sum = zeros(), squares = sum;
  if (centred) each16(width, [&](int64_t d, auto lanes) { sum = sum + load_float(x + d, lanes); });
  const Floats mean = spread(sum_of(sum) / width);
  each16(width, [&](int64_t d, auto lanes) {
    const Floats value = kept(load_float(x + d, lanes) - mean, lanes);
    squares = fma(value, value, squares);
  });
  const float factor = 1.0f / std::sqrt(sum_of(squares) / width + epsilon);
  each16(width, [&](int64_t d, auto lanes) {
    const Floats value = load_float(x + d, lanes) - mean;
    Floats y = value * spread(factor);
    y = y * load_float(norm.weight + d, lanes);
    if (norm.bias) y = y + load_float(norm.bias + d, lanes);
    store_float(out + d, y, lanes);
  });
}
