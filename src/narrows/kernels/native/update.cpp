// What follows a backward pass: sums of gradients, their norm, and AdamW on fp32 masters.
#include <algorithm>
#include <cmath>

#include "shares.h"
#include "simd.h"

namespace {

template <class Lanes>
inline __m512 load_gradient(const void* gradient, bool half, int64_t at, Lanes lanes) {
  return half ? load_bf16((const bf16*)gradient + at, lanes)
              : load_float((const float*)gradient + at, lanes);
}

// A parameter in fp32.
struct Wide {
  float* values;
  template <class L>
  __m512 load(int64_t i, L lanes) const { return load_float(values + i, lanes); }
  template <class L>
  void store(int64_t i, __m512 x, L lanes) const { store_float(values + i, x, lanes); }
};

// The same as a rounded weight and the rest: their sum as integers, the weight 16 bits higher.
struct Halves {
  bf16* weight;
  int16_t* rest;
  template <class L>
  __m512 load(int64_t i, L lanes) const {
    const __m512i high = _mm512_castps_si512(load_bf16(weight + i, lanes));
    const __m512i low = _mm512_cvtepi16_epi32(load_words(rest + i, lanes));
    return _mm512_castsi512_ps(_mm512_add_epi32(high, low));
  }
  template <class L>
  void store(int64_t i, __m512 x, L lanes) const {
    const __m512i one = _mm512_set1_epi32(1), half = _mm512_set1_epi32(0x8000);
    __m512i bits = _mm512_castps_si512(x);
    const __m512i low = _mm512_and_epi32(bits, _mm512_set1_epi32(0xffff));
    bits = _mm512_mask_or_epi32(bits, _mm512_cmpeq_epi32_mask(low, half), bits, one);
    const __m512i high = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
    store_words((int16_t*)weight + i, _mm512_cvtepi32_epi16(high), lanes);
    store_words(rest + i, _mm512_cvtepi32_epi16(bits), lanes);
  }
};

struct AdamW {
  float rate, decay, beta1, beta2, epsilon, correction1, correction2, scale;
};

template <class M>
void adamw(M master, float* moment1, float* moment2, const void* gradient, int32_t half,
           int64_t count, const AdamW& s) {
  const __m512 beta1 = _mm512_set1_ps(s.beta1), rest1 = _mm512_set1_ps(1.0f - s.beta1);
  const __m512 beta2 = _mm512_set1_ps(s.beta2), rest2 = _mm512_set1_ps(1.0f - s.beta2);
  const __m512 keep = _mm512_set1_ps(1.0f - s.rate * s.decay), scale = _mm512_set1_ps(s.scale);
  const __m512 rate = _mm512_set1_ps(s.rate / s.correction1);
  const __m512 root = _mm512_set1_ps(1.0f / std::sqrt(s.correction2));
  const __m512 epsilon = _mm512_set1_ps(s.epsilon);
  share16(count, [&](int64_t i, auto lanes) {
    __m512 g = _mm512_mul_ps(load_gradient(gradient, half, i, lanes), scale);
    __m512 m = load_float(moment1 + i, lanes), v = load_float(moment2 + i, lanes);
    m = _mm512_fmadd_ps(beta1, m, _mm512_mul_ps(rest1, g));
    v = _mm512_fmadd_ps(beta2, v, _mm512_mul_ps(rest2, _mm512_mul_ps(g, g)));
    __m512 p = _mm512_mul_ps(master.load(i, lanes), keep);
    __m512 divisor = _mm512_fmadd_ps(_mm512_sqrt_ps(v), root, epsilon);
    p = _mm512_fnmadd_ps(rate, _mm512_div_ps(m, divisor), p);
    store_float(moment1 + i, m, lanes);
    store_float(moment2 + i, v, lanes);
    master.store(i, p, lanes);
  });
}

}  // namespace

extern "C" {

void narrows_accumulate(float* sum, const bf16* gradient, int64_t count) {
  share16(count, [&](int64_t i, auto lanes) {
    store_float(sum + i, _mm512_add_ps(load_float(sum + i, lanes), load_bf16(gradient + i, lanes)),
                lanes);
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
      __m512 sum = _mm512_setzero_ps();
      each16(end - block, [&](int64_t i, auto lanes) {
        __m512 g = load_gradient(gradient, half, block + i, lanes);
        sum = _mm512_fmadd_ps(g, g, sum);
      });
      total += _mm512_reduce_add_ps(sum);
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
