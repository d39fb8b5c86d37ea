// Products of low rank beside packed matrices, y + B (A x), of rows that have an adapter: in fp32,
// of A and B in bf16, and of x as the matrix itself reads it.
#pragma once
#include "panels.h"

constexpr int64_t RANKS = 4;  // rows of A that are computed together

// B of some panels of a matrix, from `begin` to `end`: [panel][rank][16].
struct LowPart {
  const bf16* b;
  int64_t begin, end;
};

// Beside a matrix: the A of its parts lie one below the other, [count · rank][columns].
struct LowRank {
  LowPart parts[3];
  const bf16* a;
  int64_t count, rank, columns;  // rank: a multiple of RANKS

  int64_t inner() const { return count * rank; }
};

// What a step has for all rows with an adapter.
struct Adapters {
  const LowRank* const* rows;  // of each its adapter, [layer][matrix], or null; null without any
  float* inner;                // [row][columns]: A x
  int64_t columns;
  float* whole;  // [thread][widest]: x of a row
  int64_t widest;

  const LowRank* beside(int64_t row, int64_t matrix) const {
    return rows[row] ? rows[row] + matrix : nullptr;
  }

  // So many pieces of work each row's A x is at most.
  int64_t pieces() const { return columns / RANKS; }

  // Those from `begin` to `end` of all rows' pieces, by one thread.
  void multiply(int64_t matrix, const Codes& x, int64_t begin, int64_t end, int64_t me) const {
    float* own = whole + me * widest;
    int64_t unpacked = -1;
    for (int64_t i = begin; i < end; i++) {
      const int64_t row = i / pieces(), first = i % pieces() * RANKS;
      const LowRank* low = beside(row, matrix);
      if (!low || first >= low->inner()) continue;
      if (row != unpacked) x.get(unpacked = row, own);
      float* to = inner + row * columns + first;
      Floats sum[RANKS];
      for (int64_t k = 0; k < RANKS; k++) sum[k] = zeros();
      const bf16* a = low->a + first * low->columns;
      for (int64_t c = 0; c < low->columns; c += 16) {
        const Floats value = load_float(own + c);
#pragma GCC unroll 4
        for (int64_t k = 0; k < RANKS; k++)
          sum[k] = fma(value, load_bf16(a + k * low->columns + c), sum[k]);
      }
      for (int64_t k = 0; k < RANKS; k++) to[k] = sum_of(sum[k]);
    }
  }

  // Sixteen values of a row with what its adapter adds to them.
  Floats added(int64_t matrix, int64_t row, int64_t panel, Floats value) const {
    const LowRank* low = rows ? beside(row, matrix) : nullptr;
    if (!low) return value;
    const float* x = inner + row * columns;
    for (int64_t i = 0; i < low->count; i++, x += low->rank) {
      const LowPart& part = low->parts[i];
      if (panel < part.begin || panel >= part.end) continue;
      const bf16* b = part.b + (panel - part.begin) * low->rank * PANEL;
      Floats even = zeros(), odd = zeros();
      for (int64_t k = 0; k < low->rank; k += 2) {
        even = fma(spread(x[k]), load_bf16(b + k * PANEL), even);
        odd = fma(spread(x[k + 1]), load_bf16(b + (k + 1) * PANEL), odd);
      }
      return value + (even + odd);
    }
    return value;
  }
};
