// AVX-512 pieces shared by the kernels: bf16 conversion, exp, transposes, packing, the product.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

using bf16 = uint16_t;

// Unaligned 32 bf16 as fp32 halves, and back with rounding to nearest even.
static inline __m512 load_bf16(const bf16* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
static inline __m512 load_bf16(const bf16* p, __mmask16 mask) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16));
}
// Sixteen lanes, all of them: the common case, without a mask.
struct All {};
static inline __m512 load_bf16(const bf16* p, All) { return load_bf16(p); }
static inline __m512 load_float(const float* p, All) { return _mm512_loadu_ps(p); }
static inline __m512 load_float(const float* p, __mmask16 mask) {
  return _mm512_maskz_loadu_ps(mask, p);
}
static inline void store_float(float* p, __m512 x, All) { _mm512_storeu_ps(p, x); }
static inline void store_float(float* p, __m512 x, __mmask16 mask) {
  _mm512_mask_storeu_ps(p, mask, x);
}
static inline __m128i load_bytes(const uint8_t* p, All) {
  return _mm_loadu_si128((const __m128i*)p);
}
static inline __m128i load_bytes(const uint8_t* p, __mmask16 mask) {
  return _mm_maskz_loadu_epi8(mask, p);
}
static inline void store_bytes(uint8_t* p, __m128i x, All) { _mm_storeu_si128((__m128i*)p, x); }
static inline void store_bytes(uint8_t* p, __m128i x, __mmask16 mask) {
  _mm_mask_storeu_epi8(p, mask, x);
}
static inline __m256i load_words(const int16_t* p, All) {
  return _mm256_loadu_si256((const __m256i*)p);
}
static inline __m256i load_words(const int16_t* p, __mmask16 mask) {
  return _mm256_maskz_loadu_epi16(mask, p);
}
static inline void store_words(int16_t* p, __m256i x, All) {
  _mm256_storeu_si256((__m256i*)p, x);
}
static inline void store_words(int16_t* p, __m256i x, __mmask16 mask) {
  _mm256_mask_storeu_epi16(p, mask, x);
}
static inline __m512 kept(__m512 x, All) { return x; }
static inline __m512 kept(__m512 x, __mmask16 mask) { return _mm512_maskz_mov_ps(mask, x); }
static inline void store_bf16(bf16* p, __m512 x) {
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x));
}
static inline void store_bf16(bf16* p, __m512 x, __mmask16 mask) {
  _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(x));
}
static inline void store_bf16(bf16* p, __m512 x, All) { store_bf16(p, x); }
static inline float to_float(bf16 x) {
  uint32_t bits = (uint32_t)x << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
static inline bf16 to_bf16(float f) {
  return (bf16)_mm_cvtsi128_si32((__m128i)_mm_cvtneps_pbh(_mm_set_ss(f)));
}
static inline __mmask16 tail(int64_t left) {
  return left >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << left) - 1);
}

// f(i, lanes) for every sixteen of `count`; the last call may have a mask.
template <class F>
static inline void each16(int64_t count, F f) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) f(i, All{});
  if (i < count) f(i, tail(count - i));
}

// exp by 2^n · polynomial (Cephes' coefficients); relative error under 2e-7 from -87 to 88, about
// 1e-38 below. The bounds come first: of a pair with NaN, max and min give the second.
static inline __m512 exp_ps(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-87.3f), x);
  x = _mm512_min_ps(_mm512_set1_ps(88.0f), x);
  __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 y = _mm512_set1_ps(1.9875691500e-4f);
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.3981999507e-3f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(8.3334519073e-3f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(4.1665795894e-2f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.6666665459e-1f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.0000001201e-1f));
  y = _mm512_fmadd_ps(y, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(y, n);
}

// 16 × 16 transpose of 32-bit words: out[c · out_stride + r] = in[r · in_stride + c].
static inline void transpose16(const uint32_t* in, int64_t in_stride, uint32_t* out,
                               int64_t out_stride) {
  __m512i r[16], t[16];
  for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(in + i * in_stride);
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
  for (int i = 0; i < 16; i++) _mm512_storeu_si512(out + i * out_stride, r[i]);
}

// Interleave two rows of fp32 into bf16 pairs (a0 b0 a1 b1 …): 16 columns, one 64-byte store.
static inline __m512i pair_rows(__m512 a, __m512 b) {
  __m512i lo = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(a));
  __m512i hi = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(b));
  return _mm512_or_si512(lo, _mm512_slli_epi32(hi, 16));
}

// out[c/2][row][2] from rows of `width` bf16: the right operand of X @ rowsᵀ. `rows` and `width/2`
// are multiples of 16.
static inline void pack_columns(const bf16* in, int64_t stride, int rows, int width, bf16* out,
                                int64_t out_rows) {
  for (int r = 0; r < rows; r += 16)
    for (int c = 0; c < width; c += 32)
      transpose16((const uint32_t*)(in + r * stride + c), stride / 2,
                  (uint32_t*)out + (c / 2) * out_rows + r, out_rows);
}

// out[row/2][column][2]: the right operand of X @ rows. `width` is a multiple of 16.
static inline void pack_rows(const bf16* in, int64_t stride, int rows, int width, bf16* out) {
  for (int r = 0; r < rows; r += 2)
    for (int c = 0; c < width; c += 16) {
      __m512i a = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(in + r * stride + c)));
      __m512i b =
          _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(in + (r + 1) * stride + c)));
      _mm512_storeu_si512(out + r * (int64_t)width + 2 * c,
                          _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
    }
}

static inline __m512 dot_pair(__m512 sum, const bf16* a, __m512i b) {
  int32_t pair;
  memcpy(&pair, a, 4);
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)b);
}

// A tile of R rows × 16·W columns of C (+)= A · B, over k. A is row-major bf16, B packed in pairs
// with `b_columns` columns; C is fp32.
template <int R, int W, bool ADD>
static inline void product_tile(const bf16* a, int64_t a_stride, const bf16* b, int64_t b_columns,
                                float* c, int64_t c_stride, int k) {
  __m512 sum[R][W];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int w = 0; w < W; w++)
      sum[r][w] = ADD ? _mm512_loadu_ps(c + r * c_stride + 16 * w) : _mm512_setzero_ps();
  for (int p = 0; p < k; p += 2) {
    __m512i right[W];
#pragma GCC unroll 8
    for (int w = 0; w < W; w++) right[w] = _mm512_loadu_si512(b + p * b_columns + 32 * w);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int w = 0; w < W; w++) sum[r][w] = dot_pair(sum[r][w], a + r * a_stride + p, right[w]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int w = 0; w < W; w++) _mm512_storeu_ps(c + r * c_stride + 16 * w, sum[r][w]);
}

// C[m × 64] (+)= A[m × k] · B[k × 64], m a multiple of 4: a block of columns of a tile.
template <bool ADD>
static inline void product64(const bf16* a, int64_t a_stride, const bf16* b, int64_t b_columns,
                             float* c, int64_t c_stride, int m, int k) {
  for (int r = 0; r < m; r += 4, a += 4 * a_stride, c += 4 * c_stride)
    product_tile<4, 4, ADD>(a, a_stride, b, b_columns, c, c_stride, k);
}

// The same for 16 columns: head widths that are not multiples of 64.
template <bool ADD>
static inline void product16(const bf16* a, int64_t a_stride, const bf16* b, int64_t b_columns,
                             float* c, int64_t c_stride, int m, int k) {
  for (int r = 0; r < m; r += 4, a += 4 * a_stride, c += 4 * c_stride)
    product_tile<4, 1, ADD>(a, a_stride, b, b_columns, c, c_stride, k);
}
