// Values kept as one of 256 shares of the largest in their block of 256.
#include <immintrin.h>

#include <algorithm>
#include <cfloat>
#include <cstdint>

#include "simd.h"

namespace {

constexpr int64_t BLOCK = 256;

// How many of the 255 ascending bounds are below each of sixteen shares: the first four of eight
// halvings among every sixteenth of them, which a register holds.
struct Bounds {
  explicit Bounds(const float* bounds) : all(bounds) {
    float each[16] = {};
    for (int i = 0; i < 15; i++) each[i] = bounds[16 * i + 15];
    sixteenth = _mm512_loadu_ps(each);
  }

  __m512i below(__m512 share) const {
    __m512i count = _mm512_setzero_si512();
    for (int step = 8; step; step >>= 1) {
      const __m512i probe = _mm512_add_epi32(count, _mm512_set1_epi32(step - 1));
      count = beyond(count, _mm512_permutexvar_ps(probe, sixteenth), share, step);
    }
    count = _mm512_slli_epi32(count, 4);
    for (int step = 8; step; step >>= 1) {
      const __m512i probe = _mm512_add_epi32(count, _mm512_set1_epi32(step - 1));
      count = beyond(count, _mm512_i32gather_ps(probe, all, 4), share, step);
    }
    return count;
  }

 private:
  static __m512i beyond(__m512i count, __m512 bound, __m512 share, int step) {
    const __mmask16 above = _mm512_cmp_ps_mask(bound, share, _CMP_LT_OQ);
    return _mm512_mask_add_epi32(count, above, count, _mm512_set1_epi32(step));
  }

  const float* all;
  __m512 sixteenth;
};

}  // namespace

extern "C" {

// out = levels[code] · scale of the code's block.
void narrows_decode(const uint8_t* codes, const float* scales, const float* levels, float* out,
                    int64_t count) {
#pragma omp parallel for schedule(static)
  for (int64_t start = 0; start < count; start += BLOCK) {
    const __m512 scale = _mm512_set1_ps(scales[start / BLOCK]);
    each16(std::min(BLOCK, count - start), [&](int64_t i, auto lanes) {
      const uint8_t* from = codes + start + i;
      const __m512i code = _mm512_cvtepu8_epi32(load_bytes(from, lanes));
      const __m512 level = _mm512_i32gather_ps(code, levels, 4);
      store_float(out + start + i, _mm512_mul_ps(level, scale), lanes);
    });
  }
}

// The code whose level is nearest, between `bounds` half way; `scales` receives each block's
// largest.
void narrows_encode(const float* values, const float* bounds, uint8_t* codes, float* scales,
                    int64_t count) {
  const Bounds known(bounds);
#pragma omp parallel for schedule(static)
  for (int64_t start = 0; start < count; start += BLOCK) {
    const int64_t size = std::min(BLOCK, count - start);
    __m512 most = _mm512_setzero_ps();
    each16(size, [&](int64_t i, auto lanes) {
      most = _mm512_max_ps(most, _mm512_abs_ps(load_float(values + start + i, lanes)));
    });
    const float scale = _mm512_reduce_max_ps(most);
    scales[start / BLOCK] = scale;
    const __m512 divisor = _mm512_set1_ps(std::max(scale, FLT_MIN));
    each16(size, [&](int64_t i, auto lanes) {
      const __m512 share = _mm512_div_ps(load_float(values + start + i, lanes), divisor);
      store_bytes(codes + start + i, _mm512_cvtepi32_epi8(known.below(share)), lanes);
    });
  }
}
}
