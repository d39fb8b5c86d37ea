// Lanes in two registers, by AVX2 with FMA and F16C. A mask is sixteen bits here too.
#pragma once

struct Floats {
  __m256 low, high;
};
struct Ints {
  __m256i low, high;
};
using Mask = uint16_t;

// Sums that a loop may keep in registers beside what it multiplies.
constexpr int SUMS = 4;

static inline Floats operator+(Floats a, Floats b) { return {a.low + b.low, a.high + b.high}; }
static inline Floats operator-(Floats a, Floats b) { return {a.low - b.low, a.high - b.high}; }
static inline Floats operator*(Floats a, Floats b) { return {a.low * b.low, a.high * b.high}; }
static inline Floats operator/(Floats a, Floats b) { return {a.low / b.low, a.high / b.high}; }
static inline Floats zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline Floats spread(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline Floats fma(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
static inline Floats fms(Floats a, Floats b, Floats c) {
  return {_mm256_fmsub_ps(a.low, b.low, c.low), _mm256_fmsub_ps(a.high, b.high, c.high)};
}
static inline Floats fnma(Floats a, Floats b, Floats c) {
  return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
// Of a pair with NaN these give the second.
static inline Floats max(Floats a, Floats b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
static inline Floats min(Floats a, Floats b) {
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
static inline Floats abs(Floats x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}
static inline Floats sqrt(Floats x) { return {_mm256_sqrt_ps(x.low), _mm256_sqrt_ps(x.high)}; }
static inline Floats nearest(Floats x) {
  return {_mm256_round_ps(x.low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(x.high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
static inline float sum_of(Floats x) {
  const __m256 all = x.low + x.high;
  __m128 four = _mm256_castps256_ps128(all) + _mm256_extractf128_ps(all, 1);
  four = four + _mm_movehl_ps(four, four);
  return _mm_cvtss_f32(four) + _mm_cvtss_f32(_mm_movehdup_ps(four));
}
static inline float most_of(Floats x) {
  const __m256 all = _mm256_max_ps(x.low, x.high);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

static inline Ints no_ints() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static inline Ints spread_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline Ints plus(Ints a, Ints b) {
  return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
static inline Ints both(Ints a, Ints b) {
  return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)};
}
static inline Ints either(Ints a, Ints b) {
  return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)};
}
template <int N>
static inline Ints up(Ints x) {
  return {_mm256_slli_epi32(x.low, N), _mm256_slli_epi32(x.high, N)};
}
template <int N>
static inline Ints down(Ints x) {
  return {_mm256_srli_epi32(x.low, N), _mm256_srli_epi32(x.high, N)};
}
static inline int32_t sum_of(Ints x) {
  const __m256i all = _mm256_add_epi32(x.low, x.high);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

static inline Ints bits_of(Floats x) {
  return {_mm256_castps_si256(x.low), _mm256_castps_si256(x.high)};
}
static inline Floats of_bits(Ints x) {
  return {_mm256_castsi256_ps(x.low), _mm256_castsi256_ps(x.high)};
}
static inline Ints to_ints(Floats x) {
  return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)};
}
static inline Floats to_floats(Ints x) {
  return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)};
}
// x · 2^n of whole n from -126 to 127.
static inline Floats scaled(Floats x, Floats n) {
  return x * of_bits(up<23>(plus(to_ints(n), spread_int(127))));
}

// All ones in the lanes that a mask has, and the way back.
static inline Ints lanes_of(Mask mask) {
  const __m256i bits = _mm256_set1_epi32(mask);
  const __m256i low = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i high = _mm256_slli_epi32(low, 8);
  return {_mm256_cmpeq_epi32(_mm256_and_si256(bits, low), low),
          _mm256_cmpeq_epi32(_mm256_and_si256(bits, high), high)};
}
static inline Mask mask_of(__m256 low, __m256 high) {
  return (Mask)(_mm256_movemask_ps(low) | _mm256_movemask_ps(high) << 8);
}
static inline Mask less(Floats a, Floats b) {
  return mask_of(_mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ),
                 _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ));
}
static inline Mask differ(Floats a, Floats b) {
  return mask_of(_mm256_cmp_ps(a.low, b.low, _CMP_NEQ_OQ),
                 _mm256_cmp_ps(a.high, b.high, _CMP_NEQ_OQ));
}
static inline Mask equal(Ints a, Ints b) {
  const Floats same =
      of_bits({_mm256_cmpeq_epi32(a.low, b.low), _mm256_cmpeq_epi32(a.high, b.high)});
  return mask_of(same.low, same.high);
}
static inline Floats select(Mask mask, Floats yes, Floats no) {
  const Floats lanes = of_bits(lanes_of(mask));
  return {_mm256_blendv_ps(no.low, yes.low, lanes.low),
          _mm256_blendv_ps(no.high, yes.high, lanes.high)};
}
static inline Ints select(Mask mask, Ints yes, Ints no) {
  return bits_of(select(mask, of_bits(yes), of_bits(no)));
}
static inline Floats kept(Floats x, All) { return x; }
static inline Floats kept(Floats x, Mask mask) { return select(mask, x, zeros()); }

// The first of `p` that a mask, which is a tail's, has; zeros behind them; and the way back.
template <class T>
struct Some {
  T values[16];
  Some() = default;
  Some(const T* p, Mask mask) : values() { memcpy(values, p, count(mask) * sizeof(T)); }
  void copy_to(T* p, Mask mask) const { memcpy(p, values, count(mask) * sizeof(T)); }
  static size_t count(Mask mask) { return __builtin_popcount(mask); }
};

static inline Floats load_float(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline Floats load_float(const float* p, All) { return load_float(p); }
static inline Floats load_float(const float* p, Mask mask) {
  const Ints lanes = lanes_of(mask);
  return {_mm256_maskload_ps(p, lanes.low), _mm256_maskload_ps(p + 8, lanes.high)};
}
static inline void store_float(float* p, Floats x) {
  _mm256_storeu_ps(p, x.low);
  _mm256_storeu_ps(p + 8, x.high);
}
static inline void store_float(float* p, Floats x, All) { store_float(p, x); }
static inline void store_float(float* p, Floats x, Mask mask) {
  const Ints lanes = lanes_of(mask);
  _mm256_maskstore_ps(p, lanes.low, x.low);
  _mm256_maskstore_ps(p + 8, lanes.high, x.high);
}
static inline Ints load_ints(const void* p) {
  const __m256i* at = (const __m256i*)p;
  return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
static inline void store_ints(void* p, Ints x) {
  _mm256_storeu_si256((__m256i*)p, x.low);
  _mm256_storeu_si256((__m256i*)p + 1, x.high);
}
static inline Floats load_half(const void* p) {
  const __m128i* at = (const __m128i*)p;
  return {_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1))};
}
static inline Ints load_int8(const void* p) {
  const __m128i bytes = _mm_loadu_si128((const __m128i*)p);
  return {_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))};
}
static inline Ints load_uint8(const void* p) {
  const __m128i bytes = _mm_loadu_si128((const __m128i*)p);
  return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
static inline Ints load_uint8(const void* p, All) { return load_uint8(p); }
static inline Ints load_uint8(const uint8_t* p, Mask mask) {
  return load_uint8(Some<uint8_t>(p, mask).values);
}
// The lowest sixteen bits of every lane.
static inline __m256i lowest(Ints x) {
  const __m256i low = _mm256_set1_epi32(0xffff);
  const __m256i mixed =
      _mm256_packus_epi32(_mm256_and_si256(x.low, low), _mm256_and_si256(x.high, low));
  return _mm256_permute4x64_epi64(mixed, 0xd8);
}
static inline void store_int8(void* p, Ints x, All) {
  const __m256i words = _mm256_and_si256(lowest(x), _mm256_set1_epi16(0xff));
  _mm_storeu_si128((__m128i*)p, _mm_packus_epi16(_mm256_castsi256_si128(words),
                                                 _mm256_extracti128_si256(words, 1)));
}
static inline void store_int8(uint8_t* p, Ints x, Mask mask) {
  Some<uint8_t> some;
  store_int8(some.values, x, All{});
  some.copy_to(p, mask);
}
static inline Ints load_int16(const int16_t* p, All) {
  const __m128i* at = (const __m128i*)p;
  return {_mm256_cvtepi16_epi32(_mm_loadu_si128(at)),
          _mm256_cvtepi16_epi32(_mm_loadu_si128(at + 1))};
}
static inline Ints load_int16(const int16_t* p, Mask mask) {
  return load_int16(Some<int16_t>(p, mask).values, All{});
}
static inline void store_int16(int16_t* p, Ints x, All) {
  _mm256_storeu_si256((__m256i*)p, lowest(x));
}
static inline void store_int16(int16_t* p, Ints x, Mask mask) {
  Some<int16_t> some;
  store_int16(some.values, x, All{});
  some.copy_to(p, mask);
}

// bf16: its bits below sixteen zeros, or widened; stored rounded to nearest even.
static inline Ints load_narrow(const bf16* p) {
  const __m128i* at = (const __m128i*)p;
  return {_mm256_cvtepu16_epi32(_mm_loadu_si128(at)),
          _mm256_cvtepu16_epi32(_mm_loadu_si128(at + 1))};
}
static inline Floats load_bf16(const bf16* p) { return of_bits(up<16>(load_narrow(p))); }
static inline Floats load_bf16(const bf16* p, All) { return load_bf16(p); }
static inline Floats load_bf16(const bf16* p, Mask mask) {
  if (mask == 0xffff) return load_bf16(p);
  return load_bf16(Some<bf16>(p, mask).values);
}
// NaN keeps its sign and stays one.
static inline Ints narrowed(Floats x) {
  const Ints bits = bits_of(x), odd = both(down<16>(bits), spread_int(1));
  const Ints rounded = down<16>(plus(plus(bits, spread_int(0x7fff)), odd));
  const Floats there = {_mm256_cmp_ps(x.low, x.low, _CMP_ORD_Q),
                        _mm256_cmp_ps(x.high, x.high, _CMP_ORD_Q)};
  const Floats nan = of_bits(either(down<16>(bits), spread_int(0x40)));
  const Floats fine = of_bits(rounded);
  return bits_of({_mm256_blendv_ps(nan.low, fine.low, there.low),
                  _mm256_blendv_ps(nan.high, fine.high, there.high)});
}
static inline void store_bf16(bf16* p, Floats x) { store_int16((int16_t*)p, narrowed(x), All{}); }
static inline void store_bf16(bf16* p, Floats x, All) { store_bf16(p, x); }
static inline void store_bf16(bf16* p, Floats x, Mask mask) {
  if (mask == 0xffff) return store_bf16(p, x);
  store_int16((int16_t*)p, narrowed(x), mask);
}
static inline bf16 to_bf16(float f) {
  const Ints bits = narrowed(spread(f));
  return (bf16)_mm256_cvtsi256_si32(bits.low);
}

// sum + the products of both bf16 in every lane.
static inline Floats dot_pairs(Floats sum, Ints a, Ints b) {
  const Ints upper = spread_int((int32_t)0xffff0000);
  sum = fma(of_bits(up<16>(a)), of_bits(up<16>(b)), sum);
  return fma(of_bits(both(a, upper)), of_bits(both(b, upper)), sum);
}

// Thirty-two int8, two in every lane as int16; and sum + the products of both.
static inline Ints load_pairs(const void* p) {
  const __m128i* at = (const __m128i*)p;
  return {_mm256_cvtepi8_epi16(_mm_loadu_si128(at)), _mm256_cvtepi8_epi16(_mm_loadu_si128(at + 1))};
}
static inline Ints dot_words(Ints sum, Ints a, Ints b) {
  return plus(sum, {_mm256_madd_epi16(a.low, b.low), _mm256_madd_epi16(a.high, b.high)});
}

// Of sixteen values in lanes, or of any in memory, those numbered.
static inline __m256 pick(Floats from, __m256i numbers) {
  const __m256 beyond = _mm256_castsi256_ps(_mm256_slli_epi32(numbers, 28));
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(from.low, numbers),
                          _mm256_permutevar8x32_ps(from.high, numbers), beyond);
}
static inline Floats pick(Floats from, Ints numbers) {
  return {pick(from, numbers.low), pick(from, numbers.high)};
}
static inline Floats pick(const float* from, Ints numbers) {
  return {_mm256_i32gather_ps(from, numbers.low, 4), _mm256_i32gather_ps(from, numbers.high, 4)};
}

// 8 × 8 transpose of 32-bit words.
static inline void transpose8(const uint32_t* in, int64_t in_stride, uint32_t* out,
                              int64_t out_stride) {
  __m256i r[8], t[8];
  for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_si256((const __m256i*)(in + i * in_stride));
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    const __m256i first = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
    const __m256i second = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
    _mm256_storeu_si256((__m256i*)(out + i * out_stride), first);
    _mm256_storeu_si256((__m256i*)(out + (i + 4) * out_stride), second);
  }
}

// 16 × 16 transpose of 32-bit words: out[c · out_stride + r] = in[r · in_stride + c].
static inline void transpose16(const uint32_t* in, int64_t in_stride, uint32_t* out,
                               int64_t out_stride) {
  for (int r = 0; r < 16; r += 8)
    for (int c = 0; c < 16; c += 8)
      transpose8(in + r * in_stride + c, in_stride, out + c * out_stride + r, out_stride);
}
