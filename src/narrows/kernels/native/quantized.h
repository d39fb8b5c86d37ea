// Products with matrices packed in groups of 32 columns: 4 bits with a scale and a least value, or
// 8 bits with a scale. Sixteen rows lie side by side, so that one register holds a quad of columns
// of each.
//
// A panel of 16 rows is groups one behind the other; a group is codes, 16 scales in fp16 and, of 4
// bits, 16 least values. Codes of 8 bits are [quad of columns][row][4], 128 above their value; of
// 4 bits a byte holds a column of the first four quads below and the same of the last four above.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "simd.h"

constexpr int64_t GROUP = 32, PANEL = 16, TILE = 8;

struct Matrix {
  const uint8_t* panels;
  const float* bias;  // of all rows, or null
  int64_t rows, columns, bits;

  int64_t groups() const { return columns / GROUP; }
  int64_t group_bytes() const { return bits == 4 ? 320 : 544; }
  const uint8_t* panel(int64_t index) const { return panels + index * groups() * group_bytes(); }
  int64_t count() const { return (rows + PANEL - 1) / PANEL; }
};

// Rows of activations in 8 bits: codes, and of each group the scale, the sum of the codes, and both
// multiplied. TILE rows lie together, codes as [quad of columns][row][4], the rest [group][row]:
// what a tile needs next is always so many bytes further.
struct Codes {
  int8_t* values;
  float* scales;
  int32_t* sums;
  float* weighted;
  int64_t columns;

  int64_t groups() const { return columns / GROUP; }
  // Of row `r` what belongs to group `g`.
  int64_t place(int64_t r, int64_t g) const {
    return (r / TILE * groups() + g) * TILE + r % TILE;
  }

  // Thirty-two values, in two registers, as group `g` of row `r`.
  void set(int64_t r, int64_t g, __m512 a, __m512 b) const {
    const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    const float scale = most / 127.0f, inverse = most > 0.0f ? 127.0f / most : 0.0f;
    const __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(a, _mm512_set1_ps(inverse)));
    const __m512i high = _mm512_cvtps_epi32(_mm512_mul_ps(b, _mm512_set1_ps(inverse)));
    int8_t codes[GROUP];
    _mm_storeu_si128((__m128i*)codes, _mm512_cvtepi32_epi8(low));
    _mm_storeu_si128((__m128i*)(codes + 16), _mm512_cvtepi32_epi8(high));
    int8_t* to = values + (place(r, g) - r % TILE) * GROUP + r % TILE * 4;
    for (int64_t j = 0; j < 8; j++) memcpy(to + j * 4 * TILE, codes + 4 * j, 4);
    const int32_t sum = _mm512_reduce_add_epi32(_mm512_add_epi32(low, high));
    scales[place(r, g)] = scale;
    sums[place(r, g)] = sum;
    weighted[place(r, g)] = scale * sum;
  }

  void set(int64_t r, const float* from) const {
    for (int64_t g = 0; g < groups(); g++)
      set(r, g, _mm512_loadu_ps(from + g * GROUP), _mm512_loadu_ps(from + g * GROUP + 16));
  }
};

static inline __m512i quad(const int8_t* at) {
  int32_t four;
  memcpy(&four, at, 4);
  return _mm512_set1_epi32(four);
}

static inline __m512 halves(const uint8_t* at) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)at));
}

// out[m] = the sixteen rows of a panel times row m of M. Whatever M, the same for a row.
template <int M, int BITS>
static inline void tile(const uint8_t* panel, const Codes& x, int64_t first, __m512* out) {
  constexpr int CODES = BITS * 64;
  const int64_t groups = x.groups();
  const int8_t* values = x.values + first * x.columns;
  const float* scales = x.scales + first * groups;
  const float* weighted = x.weighted + first * groups;
  const int32_t* sums = x.sums + first * groups;
  __m512 total[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) total[m] = _mm512_setzero_ps();
  const __m512i low = _mm512_set1_epi8(15);
  for (int64_t g = 0; g < groups; g++, panel += CODES + (BITS == 4 ? 64 : 32)) {
    __m512i dot[M], other[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      dot[m] = BITS == 8 ? _mm512_set1_epi32(-128 * sums[m]) : _mm512_setzero_si512();
      other[m] = _mm512_setzero_si512();
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      __m512i one, two;
      if (BITS == 4) {
        const __m512i both = _mm512_loadu_si512(panel + 64 * j);
        _mm_prefetch((const char*)panel + 64 * j + 4096, _MM_HINT_T0);
        one = _mm512_and_si512(both, low);
        two = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
      } else {
        one = _mm512_loadu_si512(panel + 64 * j);
        two = _mm512_loadu_si512(panel + 64 * (j + 4));
        _mm_prefetch((const char*)panel + 64 * j + 4096, _MM_HINT_T0);
        _mm_prefetch((const char*)panel + 64 * (j + 4) + 4096, _MM_HINT_T0);
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        const int8_t* row = values + 4 * m;
        dot[m] = _mm512_dpbusd_epi32(dot[m], one, quad(row + 4 * TILE * j));
        __m512i& second = M <= 2 ? other[m] : dot[m];
        second = _mm512_dpbusd_epi32(second, two, quad(row + 4 * TILE * (j + 4)));
      }
    }
    const __m512 scale = halves(panel + CODES);
    const __m512 least = BITS == 4 ? halves(panel + CODES + 32) : _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const __m512i all = M <= 2 ? _mm512_add_epi32(dot[m], other[m]) : dot[m];
      const __m512 step = _mm512_mul_ps(scale, _mm512_set1_ps(scales[m]));
      total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(all), step, total[m]);
      if (BITS == 4)
        total[m] = _mm512_fmadd_ps(least, _mm512_set1_ps(weighted[m]), total[m]);
    }
    values += TILE * GROUP;
    scales += TILE;
    weighted += TILE;
    sums += TILE;
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) out[m] = total[m];
}

// Any number of rows up to TILE.
static inline void tile(const Matrix& w, int64_t panel, const Codes& x, int64_t first, int64_t rows,
                        __m512* out) {
  const uint8_t* from = w.panel(panel);
#define CASE(M)                                                    \
  case M:                                                          \
    return w.bits == 4 ? tile<M, 4>(from, x, first, out)           \
                       : tile<M, 8>(from, x, first, out);
  switch (rows) {
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
  }
#undef CASE
}

// emit(row, panel, sixteen values) of all rows times the panels from `begin` to `end`.
template <class F>
static inline void product(const Matrix& w, const Codes& x, int64_t rows, int64_t begin,
                           int64_t end, F emit) {
  for (int64_t p = begin; p < end; p++)
    for (int64_t first = 0; first < rows; first += TILE) {
      const int64_t some = std::min(TILE, rows - first);
      __m512 out[TILE];
      tile(w, p, x, first, some, out);
      for (int64_t m = 0; m < some; m++) {
        __m512 value = out[m];
        if (w.bias) value = _mm512_add_ps(value, _mm512_loadu_ps(w.bias + p * PANEL));
        emit(first + m, p, value);
      }
    }
}

// A row of a matrix, made whole.
static inline void unpack_row(const Matrix& w, int64_t row, float* out) {
  const uint8_t* group = w.panel(row / PANEL);
  const int64_t lane = row % PANEL;
  for (int64_t g = 0; g < w.groups(); g++, group += w.group_bytes()) {
    const uint8_t* behind = group + w.bits * 64;
    float scales[PANEL], least[PANEL];
    _mm512_storeu_ps(scales, halves(behind));
    if (w.bits == 4) _mm512_storeu_ps(least, halves(behind + 32));
    const float scale = scales[lane], shift = w.bits == 4 ? least[lane] : -128.0f * scale;
    for (int64_t k = 0; k < GROUP; k++) {
      const int64_t j = k / 4;
      const uint8_t byte = group[64 * (w.bits == 4 ? j % 4 : j) + 4 * lane + k % 4];
      const int code = w.bits == 8 ? byte : j < 4 ? byte & 15 : byte >> 4;
      out[g * GROUP + k] = scale * code + shift;
    }
  }
}
