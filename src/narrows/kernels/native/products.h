// Products of small matrices of bf16 with fp32 sums, and how their operands are packed.
#pragma once
#include "lanes.h"

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
      Ints a = load_narrow(in + r * stride + c);
      Ints b = load_narrow(in + (r + 1) * stride + c);
      store_ints(out + r * (int64_t)width + 2 * c, either(a, up<16>(b)));
    }
}

// A tile of R rows × 16·W columns of C (+)= A · B, over k. A is row-major bf16, B packed in pairs
// with `b_columns` columns; C is fp32.
template <int R, int W, bool ADD>
static inline void product_tile(const bf16* a, int64_t a_stride, const bf16* b, int64_t b_columns,
                                float* c, int64_t c_stride, int k) {
  Floats sum[R][W];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int w = 0; w < W; w++) sum[r][w] = ADD ? load_float(c + r * c_stride + 16 * w) : zeros();
  for (int p = 0; p < k; p += 2) {
    Ints right[W];
#pragma GCC unroll 8
    for (int w = 0; w < W; w++) right[w] = load_ints(b + p * b_columns + 32 * w);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int w = 0; w < W; w++)
        sum[r][w] = dot_pairs(sum[r][w], spread_bytes(a + r * a_stride + p), right[w]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int w = 0; w < W; w++) store_float(c + r * c_stride + 16 * w, sum[r][w]);
}

// C[m × columns] (+)= A[m × k] · B[k × columns], m a multiple of 4: a block of a matrix's columns.
template <int COLUMNS, bool ADD>
static inline void product(const bf16* a, int64_t a_stride, const bf16* b, int64_t b_columns,
                           float* c, int64_t c_stride, int m, int k) {
  constexpr int W = COLUMNS / 16 < SUMS / 4 ? COLUMNS / 16 : SUMS / 4;
  for (int r = 0; r < m; r += 4, a += 4 * a_stride, c += 4 * c_stride)
    for (int n = 0; n < COLUMNS; n += 16 * W)
      product_tile<4, W, ADD>(a, a_stride, b + 2 * n, b_columns, c + n, c_stride, k);
}
