// Matrices packed in groups of 32 columns, codes of 4 to 8 bits. Sixteen rows lie
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

#include "lanes.h"

constexpr int64_t GROUP = 32, PANEL = 16, TILE = 8, NEST = 8;

template <int BITS_, bool NESTED_, bool CENTRED_>
struct Kind {
  static constexpr int BITS = BITS_;
  static constexpr bool NESTED = NESTED_, CENTRED = CENTRED_;
  static constexpr bool APART = BITS == 6;   // halves of a group have scales of their own
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
  Part parts[3];      // those that are not there begin nowhere
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
  int64_t place(int64_t r, int64_t g) const { return (r / TILE * groups() + g) * TILE + r % TILE; }

  // Thirty-two values, in two registers, as group `g` of row `r`.
  void set(int64_t r, int64_t g, Floats a, Floats b) const {
    if (whole) {
      bf16 narrow[GROUP];
      store_bf16(narrow, a);
      store_bf16(narrow + 16, b);
      bf16* to = whole + (place(r, g) - r % TILE) * GROUP + r % TILE * 2;
      for (int64_t j = 0; j < 16; j++) memcpy(to + j * 2 * TILE, narrow + 2 * j, 4);
    }
    if (!values) return;
    const float most = most_of(max(abs(a), abs(b)));
    const float scale = most / 127.0f, inverse = most > 0.0f ? 127.0f / most : 0.0f;
    const Ints low = to_ints(a * spread(inverse));
    const Ints high = to_ints(b * spread(inverse));
    int8_t codes[GROUP];
    store_int8(codes, low, All{});
    store_int8(codes + 16, high, All{});
    int8_t* to = values + (place(r, g) - r % TILE) * GROUP + r % TILE * 4;
    for (int64_t j = 0; j < 8; j++) memcpy(to + j * 4 * TILE, codes + 4 * j, 4);
    const int32_t first = sum_of(low);
    const int32_t sum = first + sum_of(high);
    scales[place(r, g)] = scale;
    sums[place(r, g)] = sum;
    firsts[place(r, g)] = first;
    weighted[place(r, g)] = scale * sum;
  }

  void set(int64_t r, const float* from) const {
    for (int64_t g = 0; g < groups(); g++)
      set(r, g, load_float(from + g * GROUP), load_float(from + g * GROUP + 16));
  }

  // The row as matrices read it.
  void get(int64_t r, float* to) const {
    for (int64_t g = 0; g < groups(); g++, to += GROUP) {
      const int64_t from = (place(r, g) - r % TILE) * GROUP;
      if (whole) {
        bf16 narrow[GROUP];
        const bf16* at = whole + from + r % TILE * 2;
        for (int64_t j = 0; j < 16; j++) memcpy(narrow + 2 * j, at + j * 2 * TILE, 4);
        store_float(to, load_bf16(narrow));
        store_float(to + 16, load_bf16(narrow + 16));
        continue;
      }
      int8_t codes[GROUP];
      const int8_t* at = values + from + r % TILE * 4;
      for (int64_t j = 0; j < 8; j++) memcpy(codes + 4 * j, at + j * 4 * TILE, 4);
      const Floats scale = spread(scales[place(r, g)]);
      store_float(to, to_floats(load_int8(codes)) * scale);
      store_float(to + 16, to_floats(load_int8(codes + 16)) * scale);
    }
  }
};

// The scales of a group, of its last sixteen columns where they have their own, and least values.
struct Beside {
  Floats scale, last, least;
};

template <class K>
static inline Beside beside(const uint8_t* at, Floats unit, Floats least_unit) {
  if (!K::NESTED) {
    const Floats scale = load_half(at);
    return {scale, scale, K::CENTRED ? zeros() : load_half(at + 32)};
  }
  const Floats scale = to_floats(K::APART ? load_int8(at) : load_uint8(at)) * unit;
  const Floats other = to_floats(K::APART ? load_int8(at + 16) : load_uint8(at + 16)) * least_unit;
  if (K::APART) return {scale, other, zeros()};
  return {scale, scale, zeros() - other};
}

// The units that stand before each eight groups, where scales are whole numbers of them.
template <class K>
struct Units {
  Floats scale = zeros(), least = zeros();

  // Where group `g` begins that lies here, behind its units where it is the first of eight.
  const uint8_t* before(int64_t g, const uint8_t* at) {
    if (!K::NESTED || g % NEST) return at;
    scale = load_half(at);
    least = K::APART ? scale : load_half(at + 32);
    return at + K::UNITS;
  }
};

// What a tile of rows has for a group.
struct Rows {
  const int8_t* values;
  const float *scales, *weighted;
  const int32_t *sums, *firsts;

  Rows(const Codes& x, int64_t first)
      : values(x.values + first * x.columns),
        scales(x.scales + first * x.groups()),
        weighted(x.weighted + first * x.groups()),
        sums(x.sums + first * x.groups()),
        firsts(x.firsts + first * x.groups()) {}

  void next() {
    values += TILE * GROUP;
    scales += TILE;
    weighted += TILE;
    sums += TILE;
    firsts += TILE;
  }
};
