// Products with matrices packed in groups of 32 columns, codes of 4 to 8 bits. Sixteen rows lie
// side by side, so that one register holds a quad of columns of each.
//
// A panel of 16 rows is groups one behind the other; a group is codes, 16 scales and, where they
// are not centred, 16 least values. Codes of 8 bits are [quad of columns][row][4]; of fewer, a byte
// has the lowest four bits of a column of the first four quads below and of the last four above,
// and each bit more is a bit for every byte of those eight quads. A value is scale · code + least,
// or scale · (code - half of the codes' range) where they are centred.
//
// Scales and least values are fp16; or nested: whole numbers of fp16 units that stand before eight
// groups. Then what they make is subtracted, and of 6 bits every sixteen columns have a scale.
//
// Of 16 bits values are bf16, [pair of columns][row][2], and nothing stands beside them.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "simd.h"

constexpr int64_t GROUP = 32, PANEL = 16, TILE = 8, NEST = 8;

template <int BITS_, bool NESTED_, bool CENTRED_>
struct Kind {
  static constexpr int BITS = BITS_;
  static constexpr bool NESTED = NESTED_, CENTRED = CENTRED_;
  static constexpr bool APART = BITS == 6;  // halves of a group have scales of their own
  static constexpr bool WHOLE = BITS == 16;  // values, no codes
  static constexpr int CENTRE = CENTRED ? 1 << (BITS - 1) : 0;
  static constexpr int64_t CODES = BITS >= 8 ? 64 * BITS : 256 + 64 * (BITS - 4);
  static constexpr int64_t BESIDE = WHOLE ? 0 : NESTED || CENTRED ? 32 : 64;
  static constexpr int64_t UNITS = NESTED ? CENTRED ? 32 : 64 : 0;
  static int64_t panel_bytes(int64_t groups) {
    return groups * (CODES + BESIDE) + groups / NEST * UNITS;
  }
};

// Panels from `first` on, of one kind.
struct Part {
  const uint8_t* panels;
  int64_t first, bits, nested, centred;
};

struct Matrix {
  Part parts[3];  // those that are not there begin nowhere
  const float* bias;  // of all rows, or null
  int64_t rows, columns;

  int64_t groups() const { return columns / GROUP; }
  int64_t count() const { return (rows + PANEL - 1) / PANEL; }
  const Part& part(int64_t panel) const {
    return parts[panel >= parts[2].first ? 2 : panel >= parts[1].first ? 1 : 0];
  }
};

// f(kind, where the panel lies).
template <class F>
static inline void with_panel(const Matrix& w, int64_t panel, F f) {
  const Part& part = w.part(panel);
  const auto call = [&](auto kind) {
    f(kind, part.panels + (panel - part.first) * kind.panel_bytes(w.groups()));
  };
  switch (part.bits * 4 + part.nested * 2 + part.centred) {
    case 4 * 4: return call(Kind<4, false, false>{});
    case 4 * 4 + 1: return call(Kind<4, false, true>{});
    case 4 * 4 + 2: return call(Kind<4, true, false>{});
    case 5 * 4: return call(Kind<5, false, false>{});
    case 5 * 4 + 1: return call(Kind<5, false, true>{});
    case 5 * 4 + 2: return call(Kind<5, true, false>{});
    case 6 * 4 + 3: return call(Kind<6, true, true>{});
    case 8 * 4 + 1: return call(Kind<8, false, true>{});
    case 16 * 4 + 1: return call(Kind<16, false, true>{});
  }
}

// Rows of activations in 8 bits: codes, and of each group the scale, the sums of its codes and of
// its first sixteen, and scale times sum; and in bf16. TILE rows lie together, codes [quad of
// columns][row][4], bf16 [pair of columns][row][2], the rest [group][row]: what a tile needs next
// is always so many bytes further. Codes or bf16 are null where no matrix takes them.
struct Codes {
  bf16* whole;
  int8_t* values;
  float* scales;
  int32_t *sums, *firsts;
  float* weighted;
  int64_t columns;

  int64_t groups() const { return columns / GROUP; }
  // Of row `r` what belongs to group `g`.
  int64_t place(int64_t r, int64_t g) const {
    return (r / TILE * groups() + g) * TILE + r % TILE;
  }

  // Thirty-two values, in two registers, as group `g` of row `r`.
  void set(int64_t r, int64_t g, __m512 a, __m512 b) const {
    if (whole) {
      bf16 narrow[GROUP];
      store_bf16(narrow, a);
      store_bf16(narrow + 16, b);
      bf16* to = whole + (place(r, g) - r % TILE) * GROUP + r % TILE * 2;
      for (int64_t j = 0; j < 16; j++) memcpy(to + j * 2 * TILE, narrow + 2 * j, 4);
    }
    if (!values) return;
    const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    const float scale = most / 127.0f, inverse = most > 0.0f ? 127.0f / most : 0.0f;
    const __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(a, _mm512_set1_ps(inverse)));
    const __m512i high = _mm512_cvtps_epi32(_mm512_mul_ps(b, _mm512_set1_ps(inverse)));
    int8_t codes[GROUP];
    _mm_storeu_si128((__m128i*)codes, _mm512_cvtepi32_epi8(low));
    _mm_storeu_si128((__m128i*)(codes + 16), _mm512_cvtepi32_epi8(high));
    int8_t* to = values + (place(r, g) - r % TILE) * GROUP + r % TILE * 4;
    for (int64_t j = 0; j < 8; j++) memcpy(to + j * 4 * TILE, codes + 4 * j, 4);
    const int32_t first = _mm512_reduce_add_epi32(low);
    const int32_t sum = first + _mm512_reduce_add_epi32(high);
    scales[place(r, g)] = scale;
    sums[place(r, g)] = sum;
    firsts[place(r, g)] = first;
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

static inline __m512 whole_numbers(const uint8_t* at, bool negative) {
  const __m128i bytes = _mm_loadu_si128((const __m128i*)at);
  return _mm512_cvtepi32_ps(negative ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes));
}

// The scales of a group, of its last sixteen columns where they have their own, and least values.
struct Beside {
  __m512 scale, last, least;
};

template <class K>
static inline Beside beside(const uint8_t* at, __m512 unit, __m512 least_unit) {
  if (!K::NESTED) {
    const __m512 scale = halves(at);
    return {scale, scale, K::CENTRED ? _mm512_setzero_ps() : halves(at + 32)};
  }
  const __m512 scale = _mm512_mul_ps(whole_numbers(at, K::APART), unit);
  const __m512 other = _mm512_mul_ps(whole_numbers(at + 16, K::APART), least_unit);
  if (K::APART) return {scale, other, _mm512_setzero_ps()};
  return {scale, scale, _mm512_sub_ps(_mm512_setzero_ps(), other)};
}

// Quads j and j + 4 of a group's columns, of all sixteen rows.
template <class K>
static inline void quads(const uint8_t* group, int j, __m512i& one, __m512i& two) {
  _mm_prefetch((const char*)group + 64 * j + 4096, _MM_HINT_T0);
  one = _mm512_loadu_si512(group + 64 * j);
  if (K::BITS == 8) {
    _mm_prefetch((const char*)group + 64 * (j + 4) + 4096, _MM_HINT_T0);
    two = _mm512_loadu_si512(group + 64 * (j + 4));
    return;
  }
  const __m512i low = _mm512_set1_epi8(15);
  two = _mm512_and_si512(_mm512_srli_epi16(one, 4), low);
  one = _mm512_and_si512(one, low);
#pragma GCC unroll 2
  for (int bit = 4; bit < K::BITS; bit++) {
    const uint8_t* at = group + 64 * bit;
    const __m512i worth = _mm512_set1_epi8(1 << bit);
    if (j == 0) _mm_prefetch((const char*)at + 4096, _MM_HINT_T0);
    uint64_t first, second;
    memcpy(&first, at + 8 * j, 8);
    memcpy(&second, at + 8 * (j + 4), 8);
    one = _mm512_mask_add_epi8(one, first, one, worth);
    two = _mm512_mask_add_epi8(two, second, two, worth);
  }
}

// out[m] = the sixteen rows of a panel in bf16 times row m of M: even and odd pairs of columns are
// summed apart. Whatever M, the same for a row.
template <int M>
static void whole_tile(const uint8_t* panel, const Codes& x, int64_t first, __m512* out) {
  const bf16* values = x.whole + first * x.columns;
  __m512 even[M], odd[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) even[m] = odd[m] = _mm512_setzero_ps();
  for (int64_t g = 0; g < x.groups(); g++, panel += 64 * 16, values += TILE * GROUP)
#pragma GCC unroll 8
    for (int j = 0; j < 16; j += 2) {
      _mm_prefetch((const char*)panel + 64 * j + 4096, _MM_HINT_T0);
      _mm_prefetch((const char*)panel + 64 * (j + 1) + 4096, _MM_HINT_T0);
      const __m512i one = _mm512_loadu_si512(panel + 64 * j);
      const __m512i two = _mm512_loadu_si512(panel + 64 * (j + 1));
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        even[m] = dot_pair(even[m], values + 2 * (j * TILE + m), one);
        odd[m] = dot_pair(odd[m], values + 2 * ((j + 1) * TILE + m), two);
      }
    }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) out[m] = _mm512_add_ps(even[m], odd[m]);
}

// The same of codes.
template <int M, class K>
static void coded_tile(const uint8_t* panel, const Codes& x, int64_t first, __m512* out) {
  constexpr bool SPLIT = M <= 2 || K::APART;
  const int64_t groups = x.groups();
  const int8_t* values = x.values + first * x.columns;
  const float* scales = x.scales + first * groups;
  const float* weighted = x.weighted + first * groups;
  const int32_t *sums = x.sums + first * groups, *firsts = x.firsts + first * groups;
  __m512 total[M], unit = _mm512_setzero_ps(), least_unit = unit;
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) total[m] = _mm512_setzero_ps();
  for (int64_t g = 0; g < groups; g++, panel += K::CODES + K::BESIDE) {
    if (K::NESTED && g % NEST == 0) {
      unit = halves(panel);
      least_unit = K::APART ? unit : halves(panel + 32);
      panel += K::UNITS;
    }
    __m512i dot[M], other[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const int32_t before = K::APART ? firsts[m] : sums[m];
      dot[m] = K::CENTRED ? _mm512_set1_epi32(-K::CENTRE * before) : _mm512_setzero_si512();
      other[m] = K::APART ? _mm512_set1_epi32(-K::CENTRE * (sums[m] - before))
                          : _mm512_setzero_si512();
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      __m512i one, two;
      quads<K>(panel, j, one, two);
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        const int8_t* row = values + 4 * m;
        dot[m] = _mm512_dpbusd_epi32(dot[m], one, quad(row + 4 * TILE * j));
        __m512i& second = SPLIT ? other[m] : dot[m];
        second = _mm512_dpbusd_epi32(second, two, quad(row + 4 * TILE * (j + 4)));
      }
    }
    const Beside all = beside<K>(panel + K::CODES, unit, least_unit);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const __m512i sum = SPLIT && !K::APART ? _mm512_add_epi32(dot[m], other[m]) : dot[m];
      const __m512 scale = _mm512_set1_ps(scales[m]);
      const __m512 step = _mm512_mul_ps(all.scale, scale);
      total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), step, total[m]);
      if (K::APART) {
        const __m512 last = _mm512_mul_ps(all.last, scale);
        total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(other[m]), last, total[m]);
      }
      if (!K::CENTRED)
        total[m] = _mm512_fmadd_ps(all.least, _mm512_set1_ps(weighted[m]), total[m]);
    }
    values += TILE * GROUP;
    scales += TILE;
    weighted += TILE;
    sums += TILE;
    firsts += TILE;
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) out[m] = total[m];
}

template <int M, class K>
static inline void tile(const uint8_t* panel, const Codes& x, int64_t first, __m512* out) {
  if constexpr (K::WHOLE)
    whole_tile<M>(panel, x, first, out);
  else
    coded_tile<M, K>(panel, x, first, out);
}

// Any number of rows up to TILE.
static inline void tile(const Matrix& w, int64_t panel, const Codes& x, int64_t first, int64_t rows,
                        __m512* out) {
  with_panel(w, panel, [&](auto kind, const uint8_t* from) {
    using K = decltype(kind);
    switch (rows) {
      case 1: return tile<1, K>(from, x, first, out);
      case 2: return tile<2, K>(from, x, first, out);
      case 3: return tile<3, K>(from, x, first, out);
      case 4: return tile<4, K>(from, x, first, out);
      case 5: return tile<5, K>(from, x, first, out);
      case 6: return tile<6, K>(from, x, first, out);
      case 7: return tile<7, K>(from, x, first, out);
      case 8: return tile<8, K>(from, x, first, out);
    }
  });
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

// A row of a panel, made whole, of that many groups.
template <class K>
static void unpack(const uint8_t* group, int64_t lane, int64_t groups, float* out) {
  __m512 unit = _mm512_setzero_ps(), least_unit = unit;
  for (int64_t g = 0; g < groups; g++, group += K::CODES + K::BESIDE) {
    if (K::NESTED && g % NEST == 0) {
      unit = halves(group);
      least_unit = K::APART ? unit : halves(group + 32);
      group += K::UNITS;
    }
    const Beside all = beside<K>(group + K::CODES, unit, least_unit);
    float scale[2][PANEL], least[PANEL];
    _mm512_storeu_ps(scale[0], all.scale);
    _mm512_storeu_ps(scale[1], all.last);
    _mm512_storeu_ps(least, all.least);
    for (int j = 0; j < 4; j++) {
      __m512i both[2];
      quads<K>(group, j, both[0], both[1]);
      for (int half = 0; half < 2; half++) {
        uint8_t codes[64];
        _mm512_storeu_si512(codes, both[half]);
        for (int64_t k = 0; k < 4; k++)
          out[g * GROUP + 16 * half + 4 * j + k] =
              scale[half][lane] * (codes[4 * lane + k] - K::CENTRE) + least[lane];
      }
    }
  }
}

// A row of a matrix, made whole.
static inline void unpack_row(const Matrix& w, int64_t row, float* out) {
  const int64_t lane = row % PANEL;
  with_panel(w, row / PANEL, [&](auto kind, const uint8_t* panel) {
    using K = decltype(kind);
    if constexpr (K::WHOLE) {
      const bf16* values = (const bf16*)panel + 2 * lane;
      for (int64_t c = 0; c < w.columns; c++) out[c] = to_float(values[c / 2 * 32 + c % 2]);
    } else {
      unpack<K>(panel, lane, w.groups(), out);
    }
  });
}
