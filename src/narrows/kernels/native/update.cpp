// What follows a backward pass: sums of gradients, their norm, and AdamW on fp32 masters.
#include <algorithm>
#include <cmath>

#include "lanes.h"
#include "shares.h"

namespace {

template <class Lanes>
inline Floats load_gradient(const void* gradient, bool half, int64_t at, Lanes lanes) {
  return half ? load_bf16((const bf16*)gradient + at, lanes)
              : load_float((const float*)gradient + at, lanes);
}

// A parameter in fp32.
struct Wide {
  float* values;
  template <class L>
  Floats load(int64_t i, L lanes) const {
    return load_float(values + i, lanes);
  }
  template <class L>
  void store(int64_t i, Floats x, L lanes) const {
    store_float(values + i, x, lanes);
  }
};

// The same as a rounded weight and the rest: their sum as integers, the weight 16 bits higher.
struct Halves {
  bf16* weight;
  int16_t* rest;
  template <class L>
  Floats load(int64_t i, L lanes) const {
    const Ints high = bits_of(load_bf16(weight + i, lanes));
    const Ints low = load_int16(rest + i, lanes);
    return of_bits(plus(high, low));
  }
  template <class L>
  void store(int64_t i, Floats x, L lanes) const {
    const Ints one = spread_int(1), half = spread_int(0x8000);
    Ints bits = bits_of(x);
    const Ints low = both(bits, spread_int(0xffff));
    bits = select(equal(low, half), either(bits, one), bits);
    const Ints high = down<16>(plus(bits, half));
    store_int16((int16_t*)weight + i, high, lanes);
    store_int16(rest + i, bits, lanes);
  }
};

struct AdamW {
  float rate, decay, beta1, beta2, epsilon, correction1, correction2, scale;
};

template <class M>
void adamw(M master, float* moment1, float* moment2, const void* gradient, int32_t half,
           int64_t count, const AdamW& s) {
  const Floats beta1 = spread(s.beta1), rest1 = spread(1.0f - s.beta1);
  const Floats beta2 = spread(s.beta2), rest2 = spread(1.0f - s.beta2);
  const Floats keep = spread(1.0f - s.rate * s.decay), scale = spread(s.scale);
  const Floats rate = spread(s.rate / s.correction1);
  const Floats root = spread(1.0f / std::sqrt(s.correction2));
  const Floats epsilon = spread(s.epsilon);
  share16(count, [&](int64_t i, auto lanes) {
    Floats g = load_gradient(gradient, half, i, lanes) * scale;
    Floats m = load_float(moment1 + i, lanes), v = load_float(moment2 + i, lanes);
    m = fma(beta1, m, rest1 * g);
    v = fma(beta2, v, rest2 * (g * g));
    Floats p = master.load(i, lanes) * keep;
    Floats divisor = fma(sqrt(v), root, epsilon);
    p = fnma(rate, m / divisor, p);
    store_float(moment1 + i, m, lanes);
    store_float(moment2 + i, v, lanes);
    master.store(i, p, lanes);
  });
}

}  // namespace

extern "C" {

void narrows_accumulate(float* sum, const bf16* gradient, int64_t count) {
  share16(count, [&](int64_t i, auto lanes) {
    store_float(sum + i, load_float(sum + i, lanes) + load_bf16(gradient + i, lanes), lanes);
  });
}

// Sum of squares; `partial`: one double a thread.
double narrows_squared_norm(const void* gradient, int32_t half, double* partial, int64_t count) {
  int threads = 1;
#pragma omp parallel
  {
#pragma omp single
    threads = omp_get_num_threads();
    const Range range = own_range(count, 4096);
    double total = 0.0;
    for (int64_t block = range.begin; block < range.end; block += 4096) {
      const int64_t end = std::min(block + 4096, range.end);
      Floats sum = zeros();
      each16(end - block, [&](int64_t i, auto lanes) {
        Floats g = load_gradient(gradient, half, block + i, lanes);
        sum = fma(g, g, sum);
      });
      total += sum_of(sum);
    }
    partial[omp_get_thread_num()] = total;
  }
  double total = 0.0;
  for (int t = 0; t < threads; t++) total += partial[t];
  return total;
}

// fp32 values = a bf16 weight and the int16 rest that rounding to it took, and the way back.
void narrows_join(const bf16* weight, const int16_t* rest, float* values, int64_t count) {
  const Halves master{(bf16*)weight, (int16_t*)rest};
  share16(count,
          [&](int64_t i, auto lanes) { store_float(values + i, master.load(i, lanes), lanes); });
}

void narrows_part(bf16* weight, int16_t* rest, const float* values, int64_t count) {
  const Halves master{weight, rest};
  share16(count,
          [&](int64_t i, auto lanes) { master.store(i, load_float(values + i, lanes), lanes); });
}

// One step of AdamW; without a `rest` the weight is fp32. The gradient is multiplied by the step's
// scale first.
void narrows_adamw(void* weight, int16_t* rest, float* moment1, float* moment2,
                   const void* gradient, int32_t half, int64_t count, const AdamW* step) {
  if (rest)
    adamw(Halves{(bf16*)weight, rest}, moment1, moment2, gradient, half, count, *step);
  else
    adamw(Wide{(float*)weight}, moment1, moment2, gradient, half, count, *step);
}
}
