// A panel times some rows, by AVX2: eight rows of the panel at once, so that sums stay in
// registers.
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

// Codes of some quads times a row's, added up in 32 bits. As many products as 16 bits can hold are
// added there: of 8 bits one, which takes the codes' signs to the row's first.
template <class K>
static inline __m256i dots(const __m256i* codes, const int8_t* row, int count, __m256i sum) {
  constexpr int FITS = K::BITS == 4 ? 8 : K::BITS == 5 ? 4 : K::BITS == 6 ? 2 : 1;
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
  for (int j = 0; j < count; j += FITS) {
    __m256i words = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int i = j; i < j + FITS && i < count; i++) {
      int32_t four;
      memcpy(&four, row + 4 * TILE * i, 4);
      __m256i code = codes[i], value = _mm256_set1_epi32(four);
      if (K::BITS == 8) {
        value = _mm256_sign_epi8(value, code);
        code = _mm256_abs_epi8(code);
      }
      const __m256i products = _mm256_maddubs_epi16(code, value);
      words = i == j ? products : _mm256_add_epi16(words, products);
    }
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(words, ones));
  }
  return sum;
}

// The same of codes, for half of the panel.
template <int M, class K>
static inline void coded_half(const uint8_t* panel, const Codes& x, int64_t first, int half,
                              __m256* total) {
  constexpr int CENTRE = K::BITS == 8 ? 0 : K::CENTRE;  // of 8 bits codes are signed below
  const int64_t groups = x.groups();
  const int8_t* values = x.values + first * x.columns;
  const float* scales = x.scales + first * groups;
  const float* weighted = x.weighted + first * groups;
  const int32_t *sums = x.sums + first * groups, *firsts = x.firsts + first * groups;
  const auto own = [&](Floats of) { return half ? of.high : of.low; };
  Floats unit = zeros(), least_unit = unit;
  for (int m = 0; m < M; m++) total[m] = _mm256_setzero_ps();
  for (int64_t g = 0; g < groups; g++, panel += K::CODES + K::BESIDE) {
    if (K::NESTED && g % NEST == 0) {
      unit = load_half(panel);
      least_unit = K::APART ? unit : load_half(panel + 32);
      panel += K::UNITS;
    }
    if (half == 0) fetch(panel, K::CODES + K::BESIDE);
    __m256i codes[8];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      quads<K>(panel, j, half, codes[j], codes[j + 4]);
      if (K::BITS == 8) {
        const __m256i middle = _mm256_set1_epi8((char)0x80);
        codes[j] = _mm256_xor_si256(codes[j], middle);
        codes[j + 4] = _mm256_xor_si256(codes[j + 4], middle);
      }
    }
    const Beside all = beside<K>(panel + K::CODES, unit, least_unit);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const int8_t* row = values + 4 * m;
      const int32_t before = K::APART ? firsts[m] : sums[m];
      const __m256 scale = _mm256_set1_ps(scales[m]);
      const __m256i dot =
          dots<K>(codes, row, K::APART ? 4 : 8, _mm256_set1_epi32(-CENTRE * before));
      const __m256 step = own(all.scale) * scale;
      total[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), step, total[m]);
      if (K::APART) {
        const __m256i other =
            dots<K>(codes + 4, row + 16 * TILE, 4, _mm256_set1_epi32(-CENTRE * (sums[m] - before)));
        total[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(other), own(all.last) * scale, total[m]);
      }
      if (!K::CENTRED)
        total[m] = _mm256_fmadd_ps(own(all.least), _mm256_set1_ps(weighted[m]), total[m]);
    }
    values += TILE * GROUP;
    scales += TILE;
    weighted += TILE;
    sums += TILE;
    firsts += TILE;
  }
}

template <int M, class K>
static void coded_tile(const uint8_t* panel, const Codes& x, int64_t first, Floats* out) {
  __m256 low[M], high[M];
  coded_half<M, K>(panel, x, first, 0, low);
  coded_half<M, K>(panel, x, first, 1, high);
  for (int m = 0; m < M; m++) out[m] = {low[m], high[m]};
}
