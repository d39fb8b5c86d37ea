// A panel times some rows, by AVX-512 with VNNI and bf16: all sixteen rows of the panel at once.
#pragma once
#include "panels.h"

// Quads j and j + 4 of a group's columns, of all sixteen rows.
template <class K>
static inline void quads(const uint8_t* group, int j, Ints& one, Ints& two) {
  _mm_prefetch((const char*)group + 64 * j + 4096, _MM_HINT_T0);
  one = load_ints(group + 64 * j);
  if (K::BITS == 8) {
    _mm_prefetch((const char*)group + 64 * (j + 4) + 4096, _MM_HINT_T0);
    two = load_ints(group + 64 * (j + 4));
    return;
  }
  const Ints low = _mm512_set1_epi8(15);
  two = both(_mm512_srli_epi16(one, 4), low);
  one = both(one, low);
#pragma GCC unroll 2
  for (int bit = 4; bit < K::BITS; bit++) {
    const uint8_t* at = group + 64 * bit;
    const Ints worth = _mm512_set1_epi8(1 << bit);
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
static void whole_tile(const uint8_t* panel, const Codes& x, int64_t first, Floats* out) {
  const bf16* values = x.whole + first * x.columns;
  Floats even[M], odd[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) even[m] = odd[m] = zeros();
  for (int64_t g = 0; g < x.groups(); g++, panel += 64 * 16, values += TILE * GROUP)
#pragma GCC unroll 8
    for (int j = 0; j < 16; j += 2) {
      _mm_prefetch((const char*)panel + 64 * j + 4096, _MM_HINT_T0);
      _mm_prefetch((const char*)panel + 64 * (j + 1) + 4096, _MM_HINT_T0);
      const Ints one = load_ints(panel + 64 * j);
      const Ints two = load_ints(panel + 64 * (j + 1));
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        even[m] = dot_pairs(even[m], spread_bytes(values + 2 * (j * TILE + m)), one);
        odd[m] = dot_pairs(odd[m], spread_bytes(values + 2 * ((j + 1) * TILE + m)), two);
      }
    }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) out[m] = even[m] + odd[m];
}

// The same of codes.
template <int M, class K>
static void coded_tile(const uint8_t* panel, const Codes& x, int64_t first, Floats* out) {
  constexpr bool SPLIT = M <= 2 || K::APART;
  Rows own(x, first);
  Units<K> units;
  Floats total[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) total[m] = zeros();
  for (int64_t g = 0; g < x.groups(); g++, panel += K::CODES + K::BESIDE) {
    panel = units.before(g, panel);
    Ints dot[M], other[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const int32_t before = K::APART ? own.firsts[m] : own.sums[m];
      dot[m] = K::CENTRED ? spread_int(-K::CENTRE * before) : no_ints();
      other[m] = K::APART ? spread_int(-K::CENTRE * (own.sums[m] - before)) : no_ints();
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      Ints one, two;
      quads<K>(panel, j, one, two);
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        const int8_t* row = own.values + 4 * m;
        dot[m] = _mm512_dpbusd_epi32(dot[m], one, spread_bytes(row + 4 * TILE * j));
        Ints& second = SPLIT ? other[m] : dot[m];
        second = _mm512_dpbusd_epi32(second, two, spread_bytes(row + 4 * TILE * (j + 4)));
      }
    }
    const Beside all = beside<K>(panel + K::CODES, units.scale, units.least);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const Ints sum = SPLIT && !K::APART ? plus(dot[m], other[m]) : dot[m];
      const Floats scale = spread(own.scales[m]);
      const Floats step = all.scale * scale;
      total[m] = fma(to_floats(sum), step, total[m]);
      if (K::APART) {
        const Floats last = all.last * scale;
        total[m] = fma(to_floats(other[m]), last, total[m]);
      }
      if (!K::CENTRED) total[m] = fma(all.least, spread(own.weighted[m]), total[m]);
    }
    own.next();
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) out[m] = total[m];
}
