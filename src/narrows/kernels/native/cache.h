// Keys and values of sequences, and what attention multiplies by them. A cache is
// [layer][key head][keys | values][blocks of 16 positions]; a kind says how a block lies and how
// queries and shares of attention are kept to be multiplied by it:
//
//   Narrow  bf16: keys [H / 2][16][2], values [8][H][2]
//   Coded   int8 in the same order, and behind them the positions' scales, fp32
//
// A position's numbers are coded by the largest of them, whatever stands beside it.
#pragma once
#include "panels.h"

constexpr int64_t WIDEST = 256;                          // of a head
constexpr int64_t BLOCK = 16;                            // positions
constexpr int64_t TOGETHER = SUMS < TILE ? SUMS : TILE;  // queries at a time

// Queries that are computed together: where each is and the last position it sees, of how many;
// the blocks of positions that any sees; their scores [T][room], which become shares, and the
// sums of these.
template <int T>
struct Queries {
  const bf16* at[T];  // or codes of sixteen bits, and what one of them stands for
  const float* scale[T];
  int64_t last[T], window;
  int64_t first_block, blocks;
  float* scores;
  int64_t room;
  Floats total[T];

  float* scores_of(int t, int64_t block) const { return scores + t * room + BLOCK * block; }
};

// Where in a block one position's keys, or its values, go.
template <class N>
static inline void put_key(N* block, int64_t lane, const N* from, int64_t H) {
  for (int64_t h = 0; h < H; h += 2) memcpy(block + h * BLOCK + lane * 2, from + h, 2 * sizeof(N));
}
template <class N>
static inline void put_value(N* block, int64_t lane, const N* from, int64_t H) {
  N* to = block + lane / 2 * 2 * H + lane % 2;
  for (int64_t h = 0; h < H; h++) to[2 * h] = from[h];
}

struct Narrow {
  static int64_t bytes(int64_t H) { return BLOCK * H * sizeof(bf16); }

  static void keep_query(const float* from, int64_t H, float factor, bf16* to, float*) {
    const Floats scale = spread(factor);
    for (int64_t h = 0; h < H; h += 16) store_bf16(to + h, load_float(from + h) * scale);
  }

  static void keep_key(uint8_t* keys, int64_t position, const float* from, int64_t H) {
    bf16 narrow[WIDEST];
    for (int64_t h = 0; h < H; h += 16) store_bf16(narrow + h, load_float(from + h));
    put_key((bf16*)keys + position / BLOCK * BLOCK * H, position % BLOCK, narrow, H);
  }

  // Of so many positions, whose values are `stride` apart.
  static void keep_values(uint8_t* values, int64_t start, int64_t count, const float* from,
                          int64_t stride, int64_t H) {
    for (int64_t i = 0; i < count; i++, from += stride) {
      const int64_t position = start + i;
      bf16* to = (bf16*)values + position / 2 * 2 * H;
      if (position % 2 == 0 && i + 1 < count) {
        for (int64_t h = 0; h < H; h += 16)
          store_ints(to + 2 * h, pair_rows(load_float(from + h), load_float(from + stride + h)));
        i++, from += stride;
      } else {
        for (int64_t h = 0; h < H; h++) to[2 * h + position % 2] = to_bf16(from[h]);
      }
    }
  }

  // Products of all queries with the keys of a block.
  template <int T>
  static void score(const Queries<T>& q, const uint8_t* block, int64_t H, Floats* sum) {
    for (int t = 0; t < T; t++) sum[t] = zeros();
    for (int64_t h = 0; h < H; h += 2) {
      const Ints pair = load_ints((const bf16*)block + BLOCK * h);
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) sum[t] = dot_pairs(sum[t], spread_bytes(q.at[t] + h), pair);
    }
  }

  // Shares of a block's positions, which take the first half of the place of all scores.
  static void keep_shares(float* scores, int64_t block, Floats share, const uint8_t*, int64_t) {
    store_bf16((bf16*)scores + BLOCK * block, share);
  }

  // The values, each times its share.
  template <int T>
  static void mix(const Queries<T>& q, const uint8_t* values, int64_t H, float (*mixed)[WIDEST]) {
    constexpr int W = SUMS / TOGETHER;
    for (int64_t h = 0; h < H; h += 16 * W) {
      Floats sum[T][W];
      for (int t = 0; t < T; t++)
        for (int w = 0; w < W; w++) sum[t][w] = zeros();
      for (int64_t p = BLOCK * q.first_block; p < BLOCK * q.blocks; p += 2) {
        Ints pairs[W];
        for (int w = 0; w < W; w++)
          pairs[w] = load_ints((const bf16*)values + p * H + 2 * h + 32 * w);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
          const Ints share = spread_bytes((const bf16*)q.scores_of(t, 0) + p);
          for (int w = 0; w < W; w++) sum[t][w] = dot_pairs(sum[t][w], share, pairs[w]);
        }
      }
      for (int t = 0; t < T; t++)
        for (int w = 0; w < W; w++) store_float(mixed[t] + h + 16 * w, sum[t][w]);
    }
  }
};

// Queries, and a block's shares times the values' scales, are codes of sixteen bits: products of
// pairs are whole numbers, and below 2³¹ as heads are no wider than 256.
struct Coded {
  static constexpr float MOST = 127.0f, MOST_WIDE = 32767.0f;

  static int64_t bytes(int64_t H) { return BLOCK * (H + (int64_t)sizeof(float)); }
  static float* scales(uint8_t* block, int64_t H) { return (float*)(block + BLOCK * H); }
  static const float* scales(const uint8_t* block, int64_t H) {
    return (const float*)(block + BLOCK * H);
  }

  // emit(h, sixteen codes) of numbers as far as `most` from nought; their scale.
  template <class F>
  static float code(const float* from, int64_t H, float most, F emit) {
    Floats largest = zeros();
    for (int64_t h = 0; h < H; h += 16) largest = max(largest, abs(load_float(from + h)));
    const float scale = most_of(largest) / most;
    const Floats step = spread(scale ? scale : 1.0f);
    for (int64_t h = 0; h < H; h += 16) emit(h, to_ints(load_float(from + h) / step));
    return scale;
  }

  static float narrow(const float* from, int64_t H, int8_t* codes) {
    return code(from, H, MOST, [&](int64_t h, Ints x) { store_int8(codes + h, x, All{}); });
  }

  static void keep_query(const float* from, int64_t H, float factor, bf16* to, float* scale) {
    auto keep = [&](int64_t h, Ints x) { store_int16((int16_t*)to + h, x, All{}); };
    *scale = factor * code(from, H, MOST_WIDE, keep);
  }

  static void keep_key(uint8_t* keys, int64_t position, const float* from, int64_t H) {
    int8_t codes[WIDEST];
    uint8_t* block = keys + position / BLOCK * bytes(H);
    scales(block, H)[position % BLOCK] = narrow(from, H, codes);
    put_key((int8_t*)block, position % BLOCK, codes, H);
  }

  static void keep_values(uint8_t* values, int64_t start, int64_t count, const float* from,
                          int64_t stride, int64_t H) {
    int8_t codes[WIDEST];
    for (int64_t position = start; position < start + count; position++, from += stride) {
      uint8_t* block = values + position / BLOCK * bytes(H);
      scales(block, H)[position % BLOCK] = narrow(from, H, codes);
      put_value((int8_t*)block, position % BLOCK, codes, H);
    }
  }

  template <int T>
  static void score(const Queries<T>& q, const uint8_t* block, int64_t H, Floats* sum) {
    Ints dot[T];
    for (int t = 0; t < T; t++) dot[t] = no_ints();
    for (int64_t h = 0; h < H; h += 2) {
      const Ints pair = load_pairs(block + BLOCK * h);
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) dot[t] = dot_words(dot[t], spread_bytes(q.at[t] + h), pair);
    }
    const Floats scale = load_float(scales(block, H));
    for (int t = 0; t < T; t++) sum[t] = to_floats(dot[t]) * (scale * spread(*q.scale[t]));
  }

  // In the place of a block's scores: the codes of its shares, and what one of them stands for.
  static void keep_shares(float* scores, int64_t block, Floats share, const uint8_t* values,
                          int64_t H) {
    float* at = scores + BLOCK * block;
    const Floats weight = share * load_float(scales(values + block * bytes(H), H));
    const float step = most_of(weight) / MOST_WIDE;
    store_int16((int16_t*)at, to_ints(weight / spread(step ? step : 1.0f)), All{});
    at[BLOCK / 2] = step;
  }

  template <int T>
  static void mix(const Queries<T>& q, const uint8_t* values, int64_t H, float (*mixed)[WIDEST]) {
    for (int t = 0; t < T; t++) memset(mixed[t], 0, H * sizeof(float));
    for (int64_t b = q.first_block; b < q.blocks; b++)
      for (int64_t h = 0; h < H; h += 16) {
        Ints dot[T];
        for (int t = 0; t < T; t++) dot[t] = no_ints();
        for (int64_t p = 0; p < BLOCK; p += 2) {
          const Ints pair = load_pairs(values + b * bytes(H) + p * H + 2 * h);
#pragma GCC unroll 8
          for (int t = 0; t < T; t++)
            dot[t] = dot_words(dot[t], spread_bytes((const bf16*)q.scores_of(t, b) + p), pair);
        }
        for (int t = 0; t < T; t++) {
          const Floats step = spread(q.scores_of(t, b)[BLOCK / 2]);
          store_float(mixed[t] + h, fma(to_floats(dot[t]), step, load_float(mixed[t] + h)));
        }
      }
  }
};
