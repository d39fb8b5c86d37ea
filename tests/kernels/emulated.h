// What the kernels use of AVX-512, lane by lane: for processors without it, as slow as may be.
// Included before any source, behind which each intrinsic is the function of the same name here.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulated {

template <class T, int N>
struct Lanes {
  using Lane = T;
  static constexpr int COUNT = N;
  T at[N];
};

using F = Lanes<float, 16>;
using I = Lanes<int32_t, 16>;
using U = Lanes<uint32_t, 16>;
using B = Lanes<uint8_t, 64>;
using S = Lanes<int8_t, 64>;
using W = Lanes<int16_t, 32>;
using H = Lanes<uint16_t, 32>;
using Q = Lanes<uint64_t, 8>;

// The same bits: of a register and of its lanes.
template <class To, class From>
static inline To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

template <class Register, class Own, class Function>
static inline Register each(Function function) {
  Own out;
  for (int i = 0; i < Own::COUNT; i++) out.at[i] = function(i);
  return as<Register>(out);
}

// Halves by the instructions of AVX2 that do the same.
struct Halves {
  __m256 low, high;
};
static inline Halves halves(__m512 x) { return as<Halves>(x); }
static inline __m512 whole(__m256 low, __m256 high) { return as<__m512>(Halves{low, high}); }

static inline __m512 _mm512_set1_ps(float x) {
  return each<__m512, F>([=](int) { return x; });
}
static inline __m512 _mm512_setzero_ps() { return _mm512_set1_ps(0.0f); }
static inline __m512i _mm512_set1_epi32(int x) {
  return each<__m512i, I>([=](int) { return x; });
}
static inline __m512i _mm512_setzero_si512() { return _mm512_set1_epi32(0); }
static inline __m512i _mm512_set1_epi8(char x) {
  return each<__m512i, B>([=](int) { return uint8_t(x); });
}

#define OF_HALVES(name, half)                                              \
  static inline __m512 name(__m512 a, __m512 b, __m512 c) {                \
    const Halves x = halves(a), y = halves(b), z = halves(c);              \
    return whole(half(x.low, y.low, z.low), half(x.high, y.high, z.high)); \
  }
OF_HALVES(_mm512_fmadd_ps, _mm256_fmadd_ps)
OF_HALVES(_mm512_fmsub_ps, _mm256_fmsub_ps)
OF_HALVES(_mm512_fnmadd_ps, _mm256_fnmadd_ps)
#undef OF_HALVES

static inline __m512 _mm512_max_ps(__m512 a, __m512 b) {
  const Halves x = halves(a), y = halves(b);
  return whole(_mm256_max_ps(x.low, y.low), _mm256_max_ps(x.high, y.high));
}
static inline __m512 _mm512_min_ps(__m512 a, __m512 b) {
  const Halves x = halves(a), y = halves(b);
  return whole(_mm256_min_ps(x.low, y.low), _mm256_min_ps(x.high, y.high));
}
static inline __m512 _mm512_sqrt_ps(__m512 a) {
  const Halves x = halves(a);
  return whole(_mm256_sqrt_ps(x.low), _mm256_sqrt_ps(x.high));
}
static inline __m512 _mm512_abs_ps(__m512 a) {
  const F x = as<F>(a);
  return each<__m512, F>([&](int i) { return std::fabs(x.at[i]); });
}
// To whole numbers alone.
static inline __m512 _mm512_roundscale_ps(__m512 a, int) {
  const Halves x = halves(a);
  constexpr int HOW = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return whole(_mm256_round_ps(x.low, HOW), _mm256_round_ps(x.high, HOW));
}
static inline __m512 _mm512_scalef_ps(__m512 a, __m512 b) {
  const F x = as<F>(a), n = as<F>(b);
  return each<__m512, F>([&](int i) {
    if (std::isnan(n.at[i])) return n.at[i];
    return std::ldexp(x.at[i], int(std::fmin(std::fmax(std::floor(n.at[i]), -400.0f), 400.0f)));
  });
}

// Halves upon halves, as compilers have it.
template <class Own, class Function>
static inline auto reduced(Own x, Function function) {
  for (int n = 8; n; n /= 2)
    for (int i = 0; i < n; i++) x.at[i] = function(x.at[i], x.at[i + n]);
  return x.at[0];
}
static inline float _mm512_reduce_add_ps(__m512 a) {
  return reduced(as<F>(a), [](float x, float y) { return x + y; });
}
static inline float _mm512_reduce_max_ps(__m512 a) {
  return reduced(as<F>(a), [](float x, float y) { return x > y ? x : y; });
}
static inline int _mm512_reduce_add_epi32(__m512i a) {
  return int(reduced(as<U>(a), [](uint32_t x, uint32_t y) { return x + y; }));
}

static inline __m512i _mm512_add_epi32(__m512i a, __m512i b) {
  const U x = as<U>(a), y = as<U>(b);
  return each<__m512i, U>([&](int i) { return x.at[i] + y.at[i]; });
}
static inline __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
static inline __m512i _mm512_or_si512(__m512i a, __m512i b) { return a | b; }
static inline __m512i _mm512_slli_epi32(__m512i a, unsigned n) {
  const U x = as<U>(a);
  return each<__m512i, U>([&](int i) { return n > 31 ? 0 : x.at[i] << n; });
}
static inline __m512i _mm512_srli_epi32(__m512i a, unsigned n) {
  const U x = as<U>(a);
  return each<__m512i, U>([&](int i) { return n > 31 ? 0 : x.at[i] >> n; });
}
static inline __m512i _mm512_srli_epi16(__m512i a, unsigned n) {
  const H x = as<H>(a);
  return each<__m512i, H>([&](int i) { return uint16_t(n > 15 ? 0 : x.at[i] >> n); });
}
static inline __m512i _mm512_castps_si512(__m512 a) { return as<__m512i>(a); }
static inline __m512 _mm512_castsi512_ps(__m512i a) { return as<__m512>(a); }
static inline __m512i _mm512_cvtps_epi32(__m512 a) {
  const Halves x = halves(a);
  const __m256i out[2] = {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)};
  return as<__m512i>(out);
}
static inline __m512 _mm512_cvtepi32_ps(__m512i a) {
  const I x = as<I>(a);
  return each<__m512, F>([&](int i) { return float(x.at[i]); });
}

static inline __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int how) {
  const F x = as<F>(a), y = as<F>(b);
  unsigned out = 0;
  for (int i = 0; i < 16; i++) {
    const bool unordered = std::isnan(x.at[i]) || std::isnan(y.at[i]);
    const bool holds = how == _CMP_LT_OQ ? x.at[i] < y.at[i] : !unordered && x.at[i] != y.at[i];
    out |= unsigned(holds) << i;
  }
  return __mmask16(out);
}
static inline __mmask16 _mm512_cmpeq_epi32_mask(__m512i a, __m512i b) {
  const I x = as<I>(a), y = as<I>(b);
  unsigned out = 0;
  for (int i = 0; i < 16; i++) out |= unsigned(x.at[i] == y.at[i]) << i;
  return __mmask16(out);
}
static inline __m512 _mm512_mask_mov_ps(__m512 no, __mmask16 mask, __m512 yes) {
  const F x = as<F>(no), y = as<F>(yes);
  return each<__m512, F>([&](int i) { return mask >> i & 1 ? y.at[i] : x.at[i]; });
}
static inline __m512 _mm512_maskz_mov_ps(__mmask16 mask, __m512 a) {
  return _mm512_mask_mov_ps(_mm512_setzero_ps(), mask, a);
}
static inline __m512i _mm512_mask_mov_epi32(__m512i no, __mmask16 mask, __m512i yes) {
  return as<__m512i>(_mm512_mask_mov_ps(as<__m512>(no), mask, as<__m512>(yes)));
}
static inline __m512i _mm512_mask_add_epi8(__m512i no, __mmask64 mask, __m512i a, __m512i b) {
  const B w = as<B>(no), x = as<B>(a), y = as<B>(b);
  return each<__m512i, B>(
      [&](int i) { return uint8_t(mask >> i & 1 ? x.at[i] + y.at[i] : w.at[i]); });
}

static inline __m512 _mm512_loadu_ps(const void* p) { return as<__m512>(*(const F*)p); }
static inline void _mm512_storeu_ps(void* p, __m512 a) { memcpy(p, &a, sizeof(a)); }
static inline __m512i _mm512_loadu_si512(const void* p) { return as<__m512i>(*(const F*)p); }
static inline void _mm512_storeu_si512(void* p, __m512i a) { memcpy(p, &a, sizeof(a)); }

// Memory behind a mask's last lane is never touched.
template <class Register, class Own>
static inline Register loaded(unsigned mask, const void* p) {
  const auto* from = (const typename Own::Lane*)p;
  return each<Register, Own>(
      [&](int i) { return mask >> i & 1 ? from[i] : typename Own::Lane(0); });
}
template <class Own, class Register>
static inline void stored(void* p, unsigned mask, Register a) {
  const Own x = as<Own>(a);
  auto* to = (typename Own::Lane*)p;
  for (int i = 0; i < Own::COUNT; i++)
    if (mask >> i & 1) to[i] = x.at[i];
}
static inline __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* p) {
  return loaded<__m512, F>(mask, p);
}
static inline void _mm512_mask_storeu_ps(void* p, __mmask16 mask, __m512 a) {
  stored<F>(p, mask, a);
}
static inline __m256i _mm256_maskz_loadu_epi16(__mmask16 mask, const void* p) {
  return loaded<__m256i, Lanes<uint16_t, 16>>(mask, p);
}
static inline void _mm256_mask_storeu_epi16(void* p, __mmask16 mask, __m256i a) {
  stored<Lanes<uint16_t, 16>>(p, mask, a);
}
static inline __m128i _mm_maskz_loadu_epi8(__mmask16 mask, const void* p) {
  return loaded<__m128i, Lanes<uint8_t, 16>>(mask, p);
}
static inline void _mm_mask_storeu_epi8(void* p, __mmask16 mask, __m128i a) {
  stored<Lanes<uint8_t, 16>>(p, mask, a);
}

// Wider and narrower lanes.
template <class Own, class From, class Register>
static inline __m512i widened(Register a) {
  const From x = as<From>(a);
  return each<__m512i, Own>([&](int i) { return x.at[i]; });
}
static inline __m512i _mm512_cvtepi8_epi32(__m128i a) { return widened<I, Lanes<int8_t, 16>>(a); }
static inline __m512i _mm512_cvtepu8_epi32(__m128i a) { return widened<I, Lanes<uint8_t, 16>>(a); }
static inline __m512i _mm512_cvtepi16_epi32(__m256i a) { return widened<I, Lanes<int16_t, 16>>(a); }
static inline __m512i _mm512_cvtepu16_epi32(__m256i a) {
  return widened<I, Lanes<uint16_t, 16>>(a);
}
static inline __m512i _mm512_cvtepi8_epi16(__m256i a) { return widened<W, Lanes<int8_t, 32>>(a); }
static inline __m128i _mm512_cvtepi32_epi8(__m512i a) {
  const U x = as<U>(a);
  return each<__m128i, Lanes<uint8_t, 16>>([&](int i) { return uint8_t(x.at[i]); });
}
static inline __m256i _mm512_cvtepi32_epi16(__m512i a) {
  const U x = as<U>(a);
  return each<__m256i, Lanes<uint16_t, 16>>([&](int i) { return uint16_t(x.at[i]); });
}
static inline __m512 _mm512_cvtph_ps(__m256i a) {
  return whole(_mm256_cvtph_ps(_mm256_castsi256_si128(a)),
               _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1)));
}

// Rounded to nearest even; what is denormal becomes zero, as the instruction has it.
static inline uint16_t narrowed(float x) {
  const uint32_t bits = as<uint32_t>(x);
  if (std::isnan(x)) return uint16_t(bits >> 16 | 64);
  if ((bits & 0x7f800000) == 0) return uint16_t(bits >> 16 & 0x8000);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static inline float widened(uint16_t x) { return as<float>(uint32_t(x) << 16); }
static inline __m256bh _mm512_cvtneps_pbh(__m512 a) {
  const F x = as<F>(a);
  return each<__m256bh, Lanes<uint16_t, 16>>([&](int i) { return narrowed(x.at[i]); });
}
static inline __m128bh _mm_cvtneps_pbh(__m128 a) {
  const auto x = as<Lanes<float, 4>>(a);
  return each<__m128bh, Lanes<uint16_t, 8>>(
      [&](int i) { return i < 4 ? narrowed(x.at[i]) : uint16_t(0); });
}
static inline __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  const F s = as<F>(sum);
  const H x = as<H>(a), y = as<H>(b);
  return each<__m512, F>([&](int i) {
    const float odd = std::fma(widened(x.at[2 * i + 1]), widened(y.at[2 * i + 1]), s.at[i]);
    return std::fma(widened(x.at[2 * i]), widened(y.at[2 * i]), odd);
  });
}

static inline __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
  const I s = as<I>(sum);
  const B x = as<B>(a);
  const S y = as<S>(b);
  return each<__m512i, I>([&](int i) {
    int32_t out = s.at[i];
    for (int j = 4 * i; j < 4 * i + 4; j++) out += int32_t(x.at[j]) * y.at[j];
    return out;
  });
}
static inline __m512i _mm512_dpwssd_epi32(__m512i sum, __m512i a, __m512i b) {
  const I s = as<I>(sum);
  const W x = as<W>(a), y = as<W>(b);
  return each<__m512i, I>([&](int i) {
    return s.at[i] + x.at[2 * i] * y.at[2 * i] + x.at[2 * i + 1] * y.at[2 * i + 1];
  });
}

static inline __m512 _mm512_permutexvar_ps(__m512i numbers, __m512 a) {
  const I n = as<I>(numbers);
  const F x = as<F>(a);
  return each<__m512, F>([&](int i) { return x.at[n.at[i] & 15]; });
}
static inline __m512 _mm512_i32gather_ps(__m512i numbers, const void* from, int bytes) {
  const I n = as<I>(numbers);
  return each<__m512, F>([&](int i) {
    float out;
    memcpy(&out, (const char*)from + int64_t(n.at[i]) * bytes, sizeof(out));
    return out;
  });
}

// Of every 128 bits the lower or the upper half of both, in turn.
template <class Own, int PER>
static inline __m512i unpacked(__m512i a, __m512i b, int upper) {
  const Own x = as<Own>(a), y = as<Own>(b);
  return each<__m512i, Own>([&](int i) {
    const int at = i / PER * PER + i % PER / 2 + upper * PER / 2;
    return i % 2 ? y.at[at] : x.at[at];
  });
}
static inline __m512i _mm512_unpacklo_epi32(__m512i a, __m512i b) {
  return unpacked<U, 4>(a, b, 0);
}
static inline __m512i _mm512_unpackhi_epi32(__m512i a, __m512i b) {
  return unpacked<U, 4>(a, b, 1);
}
static inline __m512i _mm512_unpacklo_epi64(__m512i a, __m512i b) {
  return unpacked<Q, 2>(a, b, 0);
}
static inline __m512i _mm512_unpackhi_epi64(__m512i a, __m512i b) {
  return unpacked<Q, 2>(a, b, 1);
}
static inline __m512i _mm512_shuffle_i32x4(__m512i a, __m512i b, int how) {
  const Q x = as<Q>(a), y = as<Q>(b);
  return each<__m512i, Q>([&](int i) {
    const int part = how >> i / 2 * 2 & 3;
    return (i < 4 ? x : y).at[2 * part + i % 2];
  });
}

}  // namespace emulated

#define _mm256_mask_storeu_epi16 emulated::_mm256_mask_storeu_epi16
#define _mm256_maskz_loadu_epi16 emulated::_mm256_maskz_loadu_epi16
#define _mm512_abs_ps emulated::_mm512_abs_ps
#define _mm512_add_epi32 emulated::_mm512_add_epi32
#define _mm512_and_si512 emulated::_mm512_and_si512
#define _mm512_castps_si512 emulated::_mm512_castps_si512
#define _mm512_castsi512_ps emulated::_mm512_castsi512_ps
#define _mm512_cmp_ps_mask emulated::_mm512_cmp_ps_mask
#define _mm512_cmpeq_epi32_mask emulated::_mm512_cmpeq_epi32_mask
#define _mm512_cvtepi16_epi32 emulated::_mm512_cvtepi16_epi32
#define _mm512_cvtepi32_epi16 emulated::_mm512_cvtepi32_epi16
#define _mm512_cvtepi32_epi8 emulated::_mm512_cvtepi32_epi8
#define _mm512_cvtepi32_ps emulated::_mm512_cvtepi32_ps
#define _mm512_cvtepi8_epi16 emulated::_mm512_cvtepi8_epi16
#define _mm512_cvtepi8_epi32 emulated::_mm512_cvtepi8_epi32
#define _mm512_cvtepu16_epi32 emulated::_mm512_cvtepu16_epi32
#define _mm512_cvtepu8_epi32 emulated::_mm512_cvtepu8_epi32
#define _mm512_cvtneps_pbh emulated::_mm512_cvtneps_pbh
#define _mm512_cvtph_ps emulated::_mm512_cvtph_ps
#define _mm512_cvtps_epi32 emulated::_mm512_cvtps_epi32
#define _mm512_dpbf16_ps emulated::_mm512_dpbf16_ps
#define _mm512_dpbusd_epi32 emulated::_mm512_dpbusd_epi32
#define _mm512_dpwssd_epi32 emulated::_mm512_dpwssd_epi32
#define _mm512_fmadd_ps emulated::_mm512_fmadd_ps
#define _mm512_fmsub_ps emulated::_mm512_fmsub_ps
#define _mm512_fnmadd_ps emulated::_mm512_fnmadd_ps
#define _mm512_i32gather_ps emulated::_mm512_i32gather_ps
#define _mm512_loadu_ps emulated::_mm512_loadu_ps
#define _mm512_loadu_si512 emulated::_mm512_loadu_si512
#define _mm512_mask_add_epi8 emulated::_mm512_mask_add_epi8
#define _mm512_mask_mov_epi32 emulated::_mm512_mask_mov_epi32
#define _mm512_mask_mov_ps emulated::_mm512_mask_mov_ps
#define _mm512_mask_storeu_ps emulated::_mm512_mask_storeu_ps
#define _mm512_maskz_loadu_ps emulated::_mm512_maskz_loadu_ps
#define _mm512_maskz_mov_ps emulated::_mm512_maskz_mov_ps
#define _mm512_max_ps emulated::_mm512_max_ps
#define _mm512_min_ps emulated::_mm512_min_ps
#define _mm512_or_si512 emulated::_mm512_or_si512
#define _mm512_permutexvar_ps emulated::_mm512_permutexvar_ps
#define _mm512_reduce_add_epi32 emulated::_mm512_reduce_add_epi32
#define _mm512_reduce_add_ps emulated::_mm512_reduce_add_ps
#define _mm512_reduce_max_ps emulated::_mm512_reduce_max_ps
#define _mm512_roundscale_ps emulated::_mm512_roundscale_ps
#define _mm512_scalef_ps emulated::_mm512_scalef_ps
#define _mm512_set1_epi32 emulated::_mm512_set1_epi32
#define _mm512_set1_epi8 emulated::_mm512_set1_epi8
#define _mm512_set1_ps emulated::_mm512_set1_ps
#define _mm512_setzero_ps emulated::_mm512_setzero_ps
#define _mm512_setzero_si512 emulated::_mm512_setzero_si512
#define _mm512_shuffle_i32x4 emulated::_mm512_shuffle_i32x4
#define _mm512_slli_epi32 emulated::_mm512_slli_epi32
#define _mm512_sqrt_ps emulated::_mm512_sqrt_ps
#define _mm512_srli_epi16 emulated::_mm512_srli_epi16
#define _mm512_srli_epi32 emulated::_mm512_srli_epi32
#define _mm512_storeu_ps emulated::_mm512_storeu_ps
#define _mm512_storeu_si512 emulated::_mm512_storeu_si512
#define _mm512_unpackhi_epi32 emulated::_mm512_unpackhi_epi32
#define _mm512_unpackhi_epi64 emulated::_mm512_unpackhi_epi64
#define _mm512_unpacklo_epi32 emulated::_mm512_unpacklo_epi32
#define _mm512_unpacklo_epi64 emulated::_mm512_unpacklo_epi64
#define _mm_cvtneps_pbh emulated::_mm_cvtneps_pbh
#define _mm_mask_storeu_epi8 emulated::_mm_mask_storeu_epi8
#define _mm_maskz_loadu_epi8 emulated::_mm_maskz_loadu_epi8

#define __AVX512F__ 1
