// Rows of a fused projection on their way into attention's tiles and out of them.
#pragma once
#include <cmath>

#include "products.h"
#include "scratch.h"

namespace {

constexpr int BLOCK = 64;

struct Shape {
  int64_t positions, heads, kv_heads, width;  // T N K H
  bool causal;
  int64_t padded, head;  // T up to BLOCK, H up to 32
  int64_t columns() const { return (heads + 2 * kv_heads) * width; }
};

// Copy T rows of H columns into zero-padded rows, turned by the angle of their position.
void copy_rows(const bf16* in, int64_t stride, const Shape& s, const float* cos, const float* sin,
               bf16* out) {
  const int64_t half = s.width / 2;
  if (s.head != s.width) memset(out, 0, s.padded * s.head * 2);
  for (int64_t t = 0; t < s.positions; t++, in += stride, out += s.head) {
    if (!cos) {
      memcpy(out, in, s.width * 2);
      continue;
    }
    for (int64_t h = 0; h < half; h += 16) {
      Mask mask = tail(half - h);
      Floats a = load_bf16(in + h, mask), b = load_bf16(in + half + h, mask);
      Floats c = load_float(cos + t * half + h, mask);
      Floats n = load_float(sin + t * half + h, mask);
      store_bf16(out + h, fms(a, c, b * n), mask);
      store_bf16(out + half + h, fma(b, c, a * n), mask);
    }
  }
  memset(out, 0, (s.padded - s.positions) * s.head * 2);
}

// Write one row of fp32 gradients as bf16, turned back by the angle of its position.
void store_row(const float* in, const Shape& s, const float* cos, const float* sin, int64_t t,
               bf16* out) {
  const int64_t half = s.width / 2;
  if (!cos) {
    for (int64_t h = 0; h < s.width; h += 16) {
      Mask mask = tail(s.width - h);
      store_bf16(out + h, load_float(in + h, mask), mask);
    }
    return;
  }
  for (int64_t h = 0; h < half; h += 16) {
    Mask mask = tail(half - h);
    Floats a = load_float(in + h, mask), b = load_float(in + half + h, mask);
    Floats c = load_float(cos + t * half + h, mask);
    Floats n = load_float(sin + t * half + h, mask);
    store_bf16(out + h, fma(a, c, b * n), mask);
    store_bf16(out + half + h, fms(b, c, a * n), mask);
  }
}

// Blocks of BLOCK rows, each packed as the right operand of X @ rowsᵀ.
void pack_blocks(const bf16* rows, const Shape& s, bf16* out) {
  for (int64_t t = 0; t < s.padded; t += BLOCK)
    pack_columns(rows + t * s.head, s.head, BLOCK, (int)s.head, out + t * s.head, BLOCK);
}

// out[h][t] = rows[t][h]; `pairs` is room for padded · head values.
void transpose_rows(const bf16* rows, const Shape& s, bf16* pairs, bf16* out) {
  pack_rows(rows, s.head, (int)s.padded, (int)s.head, pairs);
  for (int64_t t = 0; t < s.padded / 2; t += 16)
    for (int64_t h = 0; h < s.head; h += 16)
      transpose16((const uint32_t*)pairs + t * s.head + h, s.head,
                  (uint32_t*)out + h * (s.padded / 2) + t, s.padded / 2);
}

// C[m × head] (+)= A[m × k] · B[k × head].
void product_head(const bf16* a, int64_t a_stride, const bf16* b, float* c, int64_t head, int m,
                  int k) {
  int64_t h = 0;
  for (; h + 64 <= head; h += 64)
    product<64, true>(a, a_stride, b + 2 * h, head, c + h, head, m, k);
  for (; h < head; h += 16) product<16, true>(a, a_stride, b + 2 * h, head, c + h, head, m, k);
}

// Rows of fp32 [head][BLOCK] → [BLOCK][head].
void transpose_block(const float* in, int64_t head, float* out) {
  for (int64_t h = 0; h < head; h += 16)
    for (int64_t q = 0; q < BLOCK; q += 16)
      transpose16((const uint32_t*)in + h * BLOCK + q, BLOCK, (uint32_t*)out + q * head + h, head);
}

int64_t up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

}  // namespace
