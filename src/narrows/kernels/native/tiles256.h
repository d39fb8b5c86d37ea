// A panel times some rows, by AVX2: what is one register with AVX-512 is two halves here.
#pragma once
#include "panels.h"

// Thirty-two bits, one to each byte, as so much worth.
static inline __m256i worth_of(const uint8_t* bits, int8_t worth) {
  int32_t all;
  memcpy(&all, bits, 4);
  const __m256i byte =
      _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit = _mm256_set1_epi64x((int64_t)0x8040201008040201);
  const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(all), byte);
  const __m256i there = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
  return _mm256_and_si256(there, _mm256_set1_epi8(worth));
}

// Quads j and j + 4 of a group's columns, of eight rows: the first of the panel, or the last.
template <class K>
static inline void quads(const uint8_t* group, int j, int last, __m256i& one, __m256i& two) {
  const uint8_t* at = group + 64 * j + 32 * last;
  one = _mm256_loadu_si256((const __m256i*)at);
  if (K::BITS == 8) {
    two = _mm256_loadu_si256((const __m256i*)(at + 256));
    return;
  }
  const __m256i low = _mm256_set1_epi8(15);
  two = _mm256_and_si256(_mm256_srli_epi16(one, 4), low);
  one = _mm256_and_si256(one, low);
#pragma GCC unroll 2
  for (int bit = 4; bit < K::BITS; bit++) {
    const uint8_t* bits = group + 64 * bit + 4 * last;
    one = _mm256_add_epi8(one, worth_of(bits + 8 * j, 1 << bit));
    two = _mm256_add_epi8(two, worth_of(bits + 8 * (j + 4), 1 << bit));
  }
}

template <class K>
static inline void quads(const uint8_t* group, int j, Ints& one, Ints& two) {
  quads<K>(group, j, 0, one.low, two.low);
  quads<K>(group, j, 1, one.high, two.high);
}

// What lies 4 KB further is fetched: so many bytes.
static inline void fetch(const uint8_t* at, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch((const char*)at + 4096 + i, _MM_HINT_T0);
}

// out[m] = the sixteen rows of a panel in bf16 times row m of M: the first and the second of each
// pair of columns are summed apart. Whatever M, the same for a row.
template <int M>
static void whole_tile(const uint8_t* panel, const Codes& x, int64_t first, Floats* out) {
  if constexpr (M > 2) {
    whole_tile<2>(panel, x, first, out);
    whole_tile<M - 2>(panel, x, first + 2, out + 2);
  } else {
    const bf16* values = x.whole + first / TILE * TILE * x.columns + first % TILE * 2;
    const Ints upper = spread_int((int32_t)0xffff0000);
    Floats even[M], odd[M];
    for (int m = 0; m < M; m++) even[m] = odd[m] = zeros();
    for (int64_t j = 0; j < x.columns / 2; j++, panel += 64, values += 2 * TILE) {
      _mm_prefetch((const char*)panel + 4096, _MM_HINT_T0);
      const Ints pairs = load_ints(panel);
      const Floats one = of_bits(up<16>(pairs)), two = of_bits(both(pairs, upper));
#pragma GCC unroll 2
      for (int m = 0; m < M; m++) {
        const Ints own = spread_bytes(values + 2 * m);
        even[m] = fma(of_bits(up<16>(own)), one, even[m]);
        odd[m] = fma(of_bits(both(own, upper)), two, odd[m]);
      }
    }
    for (int m = 0; m < M; m++) out[m] = even[m] + odd[m];
  }
}

// Sums of codes times a row's; where halves of a group have scales of their own, of each half. Of 4
// bits they stay in 16: so many hold all products of a group.
struct Dots {
  __m256i first, last;
};

// Two quads' codes times a row's. Codes of 8 bits are signed, and their signs go to the row first:
// of all others two products fit in 16 bits, of 5 bits four.
template <class K>
INLINE __m256i pair(const __m256i* codes, const __m256i* values) {
  if constexpr (K::BITS == 8) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i words[2];
    for (int i = 0; i < 2; i++)
      words[i] =
          _mm256_maddubs_epi16(_mm256_abs_epi8(codes[i]), _mm256_sign_epi8(values[i], codes[i]));
    return _mm256_add_epi32(_mm256_madd_epi16(words[0], ones), _mm256_madd_epi16(words[1], ones));
  } else {
    return _mm256_add_epi16(_mm256_maddubs_epi16(codes[0], values[0]),
                            _mm256_maddubs_epi16(codes[1], values[1]));
  }
}

// Two quads of the first sixteen columns, two of the last.
template <class K>
INLINE Dots dots(const __m256i* codes, const __m256i* values) {
  const __m256i ones = _mm256_set1_epi16(1);
  const __m256i first = pair<K>(codes, values), last = pair<K>(codes + 2, values + 2);
  if (K::APART) return {_mm256_madd_epi16(first, ones), _mm256_madd_epi16(last, ones)};
  if (K::BITS == 8) return {_mm256_add_epi32(first, last), last};
  const __m256i both = _mm256_add_epi16(first, last);
  return {K::BITS == 4 ? both : _mm256_madd_epi16(both, ones), both};
}

template <class K>
INLINE Dots plus(Dots a, Dots b) {
  if (K::BITS == 4) return {_mm256_add_epi16(a.first, b.first), a.last};
  return {_mm256_add_epi32(a.first, b.first), _mm256_add_epi32(a.last, b.last)};
}

// out[m] = the sixteen rows of a panel of codes times row m of M. A group's quads are taken in two
// goes: 0, 1, 4 and 5, and 2, 3, 6 and 7; what a row makes of the first go waits in memory.
template <int M, class K>
static void coded_tile(const uint8_t* panel, const Codes& x, int64_t first, Floats* out) {
  constexpr int CENTRE = K::BITS == 8 ? 0 : K::CENTRE;  // of 8 bits codes are signed below
  Rows own(x, first);
  Units<K> units;
  Floats total[M];
  for (int m = 0; m < M; m++) total[m] = zeros();
  for (int64_t g = 0; g < x.groups(); g++, panel += K::CODES + K::BESIDE) {
    panel = units.before(g, panel);
    fetch(panel, K::CODES + K::BESIDE);
    const Beside all = beside<K>(panel + K::CODES, units.scale, units.least);
    Dots waiting[M][2];
#pragma GCC unroll 2
    for (int go = 0; go < 2; go++) {
      __m256i codes[2][4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        __m256i* at = codes[i / 2] + i % 2;
        quads<K>(panel, 2 * go + i % 2, i / 2, at[0], at[2]);
        if (K::BITS == 8) {
          const __m256i middle = _mm256_set1_epi8((char)0x80);
          at[0] = _mm256_xor_si256(at[0], middle);
          at[2] = _mm256_xor_si256(at[2], middle);
        }
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        __m256i four[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
          four[i] = spread_bytes(own.values + 4 * (m + TILE * (2 * go + i % 2 + i / 2 * 4))).low;
        const Dots low = dots<K>(codes[0], four), high = dots<K>(codes[1], four);
        if (go == 0) {
          waiting[m][0] = low;
          waiting[m][1] = high;
          continue;
        }
        const Dots one = plus<K>(low, waiting[m][0]), two = plus<K>(high, waiting[m][1]);
        Ints dot = {one.first, two.first};
        if (K::BITS == 4) {
          const __m256i ones = _mm256_set1_epi16(1);
          dot = {_mm256_madd_epi16(dot.low, ones), _mm256_madd_epi16(dot.high, ones)};
        }
        const int32_t before = K::APART ? own.firsts[m] : own.sums[m];
        if (CENTRE) dot = plus(dot, spread_int(-CENTRE * before));
        total[m] = fma(to_floats(dot), all.scale * spread(own.scales[m]), total[m]);
        if (K::APART) {
          const Ints rest = {one.last, two.last};
          const Ints other = plus(rest, spread_int(-CENTRE * (own.sums[m] - before)));
          total[m] = fma(to_floats(other), all.last * spread(own.scales[m]), total[m]);
        }
        if (!K::CENTRED) total[m] = fma(all.least, spread(own.weighted[m]), total[m]);
      }
    }
    own.next();
  }
  for (int m = 0; m < M; m++) out[m] = total[m];
}
