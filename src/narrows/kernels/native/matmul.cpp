// Products of matrices of bf16 with fp32 sums, for processors that multiply no bf16: values are
// widened on the way into the cache, where fp32 multiplies as quickly as it ever does.
//
// A thread takes blocks of C, and for each a slice of k after the other: a slice of A and one of B
// are widened, and their product joins the block's sums. No value depends on how C was cut.
#include "lanes.h"
#include "scratch.h"
#include "shares.h"

namespace {

constexpr int64_t ROWS = 6, COLUMNS = 16;                      // of C, in registers
constexpr int64_t HIGHEST = 32 * ROWS, WIDEST = 16 * COLUMNS;  // of a block of C
constexpr int64_t DEPTH = 128;                                 // of a slice
constexpr int64_t PAIRS = 2 * COLUMNS;                         // values that 16 pairs of bf16 are

// values[r · row + c · column]; one of both is 1.
struct Operand {
  const bf16* values;
  int64_t row, column;
  const bf16* at(int64_t r, int64_t c) const { return values + r * row + c * column; }
};

// C = A · B + added, where there is anything to add; `added_row` is 0 for one row added to all.
struct Product {
  Operand a, b;
  const bf16* added;
  int64_t added_row;
  bf16* out;
  int64_t out_row, m, n, k;
};

void widen(const bf16* from, int64_t count, float* to) {
  each16(count,
         [&](int64_t i, auto lanes) { store_float(to + i, load_bf16(from + i, lanes), lanes); });
}

// A slice of A as it lies, in fp32: [rows][depth], or [depth][rows] where columns follow each
// other. Rows up to a multiple of ROWS are zeros.
struct Left {
  float* values;
  int64_t row, column;
};
Left widened_left(const Operand& a, Range rows, Range depth, float* to) {
  const int64_t all = (rows.count() + ROWS - 1) / ROWS * ROWS;
  if (a.column == 1) {
    for (int64_t r = 0; r < rows.count(); r++)
      widen(a.at(rows.begin + r, depth.begin), depth.count(), to + r * DEPTH);
    memset(to + rows.count() * DEPTH, 0, (all - rows.count()) * DEPTH * 4);
    return {to, DEPTH, 1};
  }
  for (int64_t p = 0; p < depth.count(); p++) {
    widen(a.at(rows.begin, depth.begin + p), rows.count(), to + p * HIGHEST);
    memset(to + p * HIGHEST + rows.count(), 0, (all - rows.count()) * 4);
  }
  return {to, 1, HIGHEST};
}

// Sixteen rows of pairs → the same columns one below the other, in fp32: [32][16].
void turn_pairs(const bf16* rows, int64_t stride, float* to) {
  uint32_t turned[COLUMNS * COLUMNS];
  transpose16((const uint32_t*)rows, stride / 2, turned, COLUMNS);
  const Ints upper = spread_int((int32_t)0xffff0000);
  for (int64_t p = 0; p < COLUMNS; p++) {
    const Ints pairs = load_ints(turned + p * COLUMNS);
    store_float(to + 2 * p * COLUMNS, of_bits(up<16>(pairs)));
    store_float(to + (2 * p + 1) * COLUMNS, of_bits(both(pairs, upper)));
  }
}

// Sixteen columns of a slice of B, [depth][16] in fp32; behind the last column are zeros.
void widened_panel(const Operand& b, Range columns, Range depth, float* to) {
  const int64_t count = std::min(columns.count(), COLUMNS);
  if (b.column == 1) {
    for (int64_t p = 0; p < depth.count(); p++)
      store_float(to + p * COLUMNS, load_bf16(b.at(depth.begin + p, columns.begin), tail(count)));
    return;
  }
  for (int64_t p = 0; p < depth.count(); p += PAIRS) {
    const int64_t deep = std::min(PAIRS, depth.count() - p);
    if (deep == PAIRS && count == COLUMNS && b.column % 2 == 0) {
      turn_pairs(b.at(depth.begin + p, columns.begin), b.column, to + p * COLUMNS);
      continue;
    }
    bf16 some[COLUMNS * PAIRS] = {};
    for (int64_t c = 0; c < count; c++)
      memcpy(some + c * PAIRS, b.at(depth.begin + p, columns.begin + c), deep * sizeof(bf16));
    turn_pairs(some, PAIRS, to + p * COLUMNS);
  }
}

// ROWS × COLUMNS sums += so many columns of A · rows of a panel.
template <bool FIRST>
void tile(const Left& a, int64_t row, const float* panel, int64_t depth, float* sums) {
  Floats sum[ROWS];
#pragma GCC unroll 6
  for (int r = 0; r < ROWS; r++) sum[r] = FIRST ? zeros() : load_float(sums + r * COLUMNS);
  const float* left = a.values + row * a.row;
  for (int64_t p = 0; p < depth; p++, left += a.column, panel += COLUMNS) {
    const Floats right = load_float(panel);
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++) sum[r] = fma(spread(left[r * a.row]), right, sum[r]);
  }
#pragma GCC unroll 6
  for (int r = 0; r < ROWS; r++) store_float(sums + r * COLUMNS, sum[r]);
}

// One block of C. Its sums are [panel][row][16].
void block(const Product& product, Range rows, Range columns) {
  scratch.reserve((HIGHEST * DEPTH + WIDEST * DEPTH + HIGHEST * WIDEST) * sizeof(float) + 256);
  float *left = take<float>(HIGHEST * DEPTH), *right = take<float>(WIDEST * DEPTH),
        *sums = take<float>(HIGHEST * WIDEST);
  for (int64_t k = 0; k < product.k; k += DEPTH) {
    const Range depth{k, std::min(k + DEPTH, product.k)};
    const Left a = widened_left(product.a, rows, depth, left);
    for (int64_t c = 0; c < columns.count(); c += COLUMNS) {
      float *panel = right + c * DEPTH, *own = sums + c * HIGHEST;
      widened_panel(product.b, {columns.begin + c, columns.end}, depth, panel);
      for (int64_t r = 0; r < rows.count(); r += ROWS)
        if (k == 0)
          tile<true>(a, r, panel, depth.count(), own + r * COLUMNS);
        else
          tile<false>(a, r, panel, depth.count(), own + r * COLUMNS);
    }
  }
  for (int64_t r = 0; r < rows.count(); r++) {
    const int64_t row = rows.begin + r;
    bf16* out = product.out + row * product.out_row + columns.begin;
    const bf16* added = product.added + row * product.added_row + columns.begin;
    each16(columns.count(), [&](int64_t c, auto lanes) {
      Floats sum = load_float(sums + c * HIGHEST + r * COLUMNS);
      if (product.added) sum = sum + load_bf16(added + c, lanes);
      store_bf16(out + c, sum, lanes);
    });
  }
}

}  // namespace

extern "C" {

// out [m][n] = a [m][k] · b [k][n] + added, all bf16; strides in values.
void narrows_matmul(const bf16* a, int64_t a_row, int64_t a_column, const bf16* b, int64_t b_row,
                    int64_t b_column, const bf16* added, int64_t added_row, bf16* out,
                    int64_t out_row, int64_t m, int64_t n, int64_t k) {
  const Product product{
      {a, a_row, a_column}, {b, b_row, b_column}, added, added_row, out, out_row, m, n, k};
  int64_t high = (m + HIGHEST - 1) / HIGHEST;
  const int64_t wide = (n + WIDEST - 1) / WIDEST, threads = omp_get_max_threads();
  // As many blocks for each thread, where rows are enough.
  while (high * wide % threads && high * wide < 8 * threads && (high + 1) * ROWS <= m) high++;
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < high * wide; task++)
    block(product, part_of(m, high, task % high, ROWS), part_of(n, wide, task / high, COLUMNS));
}
}
