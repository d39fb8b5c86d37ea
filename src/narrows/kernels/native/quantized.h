// Products with packed matrices, and their rows made whole.
#pragma once
#include <algorithm>

#include "panels.h"
#ifdef __AVX512F__
#include "tiles512.h"
#else
#include "tiles256.h"
#endif

template <int M, class K>
static inline void tile(const uint8_t* panel, const Codes& x, int64_t first, Floats* out) {
  if constexpr (K::WHOLE)
    whole_tile<M>(panel, x, first, out);
  else
    coded_tile<M, K>(panel, x, first, out);
}

// Any number of rows up to TILE.
static inline void tile(const Matrix& w, int64_t panel, const Codes& x, int64_t first, int64_t rows,
                        Floats* out) {
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
      Floats out[TILE];
      tile(w, p, x, first, some, out);
      for (int64_t m = 0; m < some; m++) {
        Floats value = out[m];
        if (w.bias) value = value + load_float(w.bias + p * PANEL);
        emit(first + m, p, value);
      }
    }
}

// A row of a panel, made whole, of that many groups.
template <class K>
static void unpack(const uint8_t* group, int64_t lane, int64_t groups, float* out) {
  Units<K> units;
  for (int64_t g = 0; g < groups; g++, group += K::CODES + K::BESIDE) {
    group = units.before(g, group);
    const Beside all = beside<K>(group + K::CODES, units.scale, units.least);
    float scale[2][PANEL], least[PANEL];
    store_float(scale[0], all.scale);
    store_float(scale[1], all.last);
    store_float(least, all.least);
    uint8_t codes[2][4][64];
    for (int j = 0; j < 4; j++) {
      Ints one, two;
      quads<K>(group, j, one, two);
      store_ints(codes[0][j], one);
      store_ints(codes[1][j], two);
    }
    for (int64_t c = 0; c < GROUP; c++) {
      const int code = codes[c / 16][c % 16 / 4][4 * lane + c % 4] - K::CENTRE;
      out[g * GROUP + c] = scale[c / 16][lane] * code + least[lane];
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
