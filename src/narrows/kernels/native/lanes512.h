// Lanes in one register, by AVX-512 with bf16 and VNNI.
#pragma once

using Floats = __m512;
using Ints = __m512i;
using Mask = __mmask16;

// Sums that a loop may keep in registers beside what it multiplies.
constexpr int SUMS = 16;

static inline Floats zeros() { return _mm512_setzero_ps(); }
static inline Floats spread(float x) { return _mm512_set1_ps(x); }
static inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
static inline Floats fms(Floats a, Floats b, Floats c) { return _mm512_fmsub_ps(a, b, c); }
static inline Floats fnma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
// Of a pair with NaN these give the second.
static inline Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
static inline Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
static inline Floats abs(Floats x) { return _mm512_abs_ps(x); }
static inline Floats sqrt(Floats x) { return _mm512_sqrt_ps(x); }
static inline Floats nearest(Floats x) { return _mm512_roundscale_ps(x, 0); }
// x · 2^n of whole n.
static inline Floats scaled(Floats x, Floats n) { return _mm512_scalef_ps(x, n); }
static inline float sum_of(Floats x) { return _mm512_reduce_add_ps(x); }
static inline float most_of(Floats x) { return _mm512_reduce_max_ps(x); }

static inline Ints no_ints() { return _mm512_setzero_si512(); }
static inline Ints spread_int(int32_t x) { return _mm512_set1_epi32(x); }
static inline Ints plus(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
static inline Ints both(Ints a, Ints b) { return _mm512_and_si512(a, b); }
static inline Ints either(Ints a, Ints b) { return _mm512_or_si512(a, b); }
template <int N>
static inline Ints up(Ints x) {
  return _mm512_slli_epi32(x, N);
}
template <int N>
static inline Ints down(Ints x) {
  return _mm512_srli_epi32(x, N);
}
static inline int32_t sum_of(Ints x) { return _mm512_reduce_add_epi32(x); }

static inline Ints bits_of(Floats x) { return _mm512_castps_si512(x); }
static inline Floats of_bits(Ints x) { return _mm512_castsi512_ps(x); }
static inline Ints to_ints(Floats x) { return _mm512_cvtps_epi32(x); }
static inline Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }

static inline Mask less(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
static inline Mask differ(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_OQ); }
static inline Mask equal(Ints a, Ints b) { return _mm512_cmpeq_epi32_mask(a, b); }
static inline Floats select(Mask mask, Floats yes, Floats no) {
  return _mm512_mask_mov_ps(no, mask, yes);
}
static inline Ints select(Mask mask, Ints yes, Ints no) {
  return _mm512_mask_mov_epi32(no, mask, yes);
}
static inline Floats kept(Floats x, All) { return x; }
static inline Floats kept(Floats x, Mask mask) { return _mm512_maskz_mov_ps(mask, x); }

static inline Floats load_float(const float* p) { return _mm512_loadu_ps(p); }
static inline Floats load_float(const float* p, All) { return _mm512_loadu_ps(p); }
static inline Floats load_float(const float* p, Mask mask) {
  return _mm512_maskz_loadu_ps(mask, p);
}
static inline void store_float(float* p, Floats x) { _mm512_storeu_ps(p, x); }
static inline void store_float(float* p, Floats x, All) { _mm512_storeu_ps(p, x); }
static inline void store_float(float* p, Floats x, Mask mask) { _mm512_mask_storeu_ps(p, mask, x); }
static inline Ints load_ints(const void* p) { return _mm512_loadu_si512(p); }
static inline void store_ints(void* p, Ints x) { _mm512_storeu_si512(p, x); }
static inline Floats load_half(const void* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
static inline Ints load_int8(const void* p) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
}
static inline Ints load_uint8(const void* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
}
static inline Ints load_uint8(const void* p, All) { return load_uint8(p); }
static inline Ints load_uint8(const void* p, Mask mask) {
  return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, p));
}
// The lowest bits of every lane.
static inline void store_int8(void* p, Ints x, All) {
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(x));
}
static inline void store_int8(void* p, Ints x, Mask mask) {
  _mm_mask_storeu_epi8(p, mask, _mm512_cvtepi32_epi8(x));
}
static inline Ints load_int16(const int16_t* p, All) {
  return _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i*)p));
}
static inline Ints load_int16(const int16_t* p, Mask mask) {
  return _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(mask, p));
}
static inline void store_int16(int16_t* p, Ints x, All) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(x));
}
static inline void store_int16(int16_t* p, Ints x, Mask mask) {
  _mm256_mask_storeu_epi16(p, mask, _mm512_cvtepi32_epi16(x));
}

// bf16: its bits below sixteen zeros, or widened; stored rounded to nearest even.
static inline Ints load_narrow(const bf16* p) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
}
static inline Floats load_bf16(const bf16* p) { return of_bits(up<16>(load_narrow(p))); }
static inline Floats load_bf16(const bf16* p, All) { return load_bf16(p); }
static inline Floats load_bf16(const bf16* p, Mask mask) {
  return of_bits(up<16>(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p))));
}
static inline void store_bf16(bf16* p, Floats x) {
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x));
}
static inline void store_bf16(bf16* p, Floats x, All) { store_bf16(p, x); }
static inline void store_bf16(bf16* p, Floats x, Mask mask) {
  _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(x));
}
static inline Ints narrowed(Floats x) {
  return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
}
static inline bf16 to_bf16(float f) {
  return (bf16)_mm_cvtsi128_si32((__m128i)_mm_cvtneps_pbh(_mm_set_ss(f)));
}

// sum + the products of both bf16 in every lane.
static inline Floats dot_pairs(Floats sum, Ints a, Ints b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

// Thirty-two int8, two in every lane as int16; and sum + the products of both.
static inline Ints load_pairs(const void* p) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p));
}
static inline Ints dot_words(Ints sum, Ints a, Ints b) { return _mm512_dpwssd_epi32(sum, a, b); }

// Of sixteen values in lanes, or of any in memory, those numbered.
static inline Floats pick(Floats from, Ints numbers) {
  return _mm512_permutexvar_ps(numbers, from);
}
static inline Floats pick(const float* from, Ints numbers) {
  return _mm512_i32gather_ps(numbers, from, 4);
}

// 16 × 16 transpose of 32-bit words: out[c · out_stride + r] = in[r · in_stride + c].
static inline void transpose16(const uint32_t* in, int64_t in_stride, uint32_t* out,
                               int64_t out_stride) {
  Ints r[16], t[16];
  for (int i = 0; i < 16; i++) r[i] = load_ints(in + i * in_stride);
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
  for (int i = 0; i < 16; i++) store_ints(out + i * out_stride, r[i]);
}
