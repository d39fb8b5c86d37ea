// Attention on a fused projection, causal or not, forward and backward, in bf16 with fp32 sums.
//
// Rows are documents one behind the other. A task is one head of one document. Scores are computed
// transposed (rows are keys, lanes are queries), so that the softmax needs no sum across lanes; the
// recurrence is FlashAttention-2's (arXiv:2307.08691). Rotary positions turn queries and keys while
// they are copied into place.
#include <cmath>

#include "activations.h"
#include "rows.h"

namespace {

// Scores of a tile that no query may attend to: of later keys, or of those behind the last.
void mask_tile(float* scores, const Shape& s, int64_t key, int64_t query) {
  if (s.causal && key == query)
    for (int k = 0; k < BLOCK; k++)
      for (int q = 0; q < k; q++) scores[k * BLOCK + q] = -INFINITY;
  if (s.causal) return;
  for (int64_t k = s.positions - key; k < BLOCK; k++)
    for (int q = 0; q < BLOCK; q++) scores[k * BLOCK + q] = -INFINITY;
}

struct Softmax {
  Floats top[4], sum[4];
};

// One tile of the online softmax: scores [key][query] → probabilities packed in key pairs; the
// output so far [head][query] is rescaled to the new maximum.
void softmax_tile(float* scores, float scale, Softmax& state, bf16* packed, float* out,
                  int64_t head) {
  for (int w = 0; w < 4; w++) {
    const Floats factor = spread(scale);
    Floats top = state.top[w];
    for (int key = 0; key < BLOCK; key++) {
      Floats score = load_float(scores + key * BLOCK + 16 * w);
      top = max(top, score * factor);
    }
    Floats shrink = exp_ps(state.top[w] - top);
    Floats sum = state.sum[w] * shrink;
    for (int key = 0; key < BLOCK; key += 2) {
      const float* row = scores + key * BLOCK + 16 * w;
      Floats a = exp_ps(fms(load_float(row), factor, top));
      Floats b = exp_ps(fms(load_float(row + BLOCK), factor, top));
      sum = sum + (a + b);
      store_ints(packed + key * BLOCK + 32 * w, pair_rows(a, b));
    }
    state.top[w] = top;
    state.sum[w] = sum;
    for (int64_t h = 0; h < head; h++) {
      float* at = out + h * BLOCK + 16 * w;
      store_float(at, load_float(at) * shrink);
    }
  }
}

void forward_head(const bf16* q, const bf16* k, const bf16* v, const Shape& s, const float* cos,
                  const float* sin, bf16* out, float* lse) {
  const int64_t plane = s.padded * s.head;
  scratch.reserve(plane * 2 * 5 + BLOCK * BLOCK * 6 + s.head * BLOCK * 8 + 4096);
  bf16 *keys = take<bf16>(plane), *rows = take<bf16>(plane), *pairs = take<bf16>(plane),
       *values = take<bf16>(plane), *queries = take<bf16>(plane),
       *packed = take<bf16>(BLOCK * BLOCK);
  float *scores = take<float>(BLOCK * BLOCK), *sums = take<float>(s.head * BLOCK),
        *turned = take<float>(s.head * BLOCK);
  copy_rows(v, s.columns(), s, nullptr, nullptr, rows);
  transpose_rows(rows, s, pairs, values);
  copy_rows(q, s.columns(), s, cos, sin, rows);
  pack_blocks(rows, s, queries);
  copy_rows(k, s.columns(), s, cos, sin, keys);
  const float scale = 1.0f / std::sqrt((float)s.width);
  for (int64_t query = 0; query < s.padded; query += BLOCK) {
    Softmax state;
    for (int w = 0; w < 4; w++) {
      state.top[w] = spread(-1e30f);
      state.sum[w] = zeros();
    }
    memset(sums, 0, s.head * BLOCK * 4);
    const int64_t last = s.causal ? query : s.padded - BLOCK;
    for (int64_t key = 0; key <= last; key += BLOCK) {
      product<64, false>(keys + key * s.head, s.head, queries + query * s.head, BLOCK, scores,
                         BLOCK, BLOCK, (int)s.head);
      mask_tile(scores, s, key, query);
      softmax_tile(scores, scale, state, packed, sums, s.head);
      product<64, true>(values + key, s.padded, packed, BLOCK, sums, BLOCK, (int)s.head, BLOCK);
    }
    float total[BLOCK], top[BLOCK];
    for (int w = 0; w < 4; w++) {
      store_float(total + 16 * w, state.sum[w]);
      store_float(top + 16 * w, state.top[w]);
    }
    transpose_block(sums, s.head, turned);
    for (int64_t i = 0; i < BLOCK && query + i < s.positions; i++) {
      const Floats inverse = spread(1.0f / total[i]);
      lse[query + i] = top[i] + std::log(total[i]);
      for (int64_t h = 0; h < s.width; h += 16) {
        Mask mask = tail(s.width - h);
        store_bf16(out + (query + i) * s.heads * s.width + h,
                   load_float(turned + i * s.head + h) * inverse, mask);
      }
    }
  }
}

struct Gradients {
  float *dk, *dv;        // fp32 rows [padded][head] of this head
  float* dq_transposed;  // [block][head][BLOCK]
};

// One tile: probabilities again from the scores, then the four products of the backward pass.
struct BackwardTile {
  const bf16 *keys, *values, *keys_transposed;  // [T][H], [T][H], [H][T]
  const bf16 *queries, *queries_pairs;          // blocks packed by column, rows packed in pairs
  const bf16 *outputs, *outputs_pairs;          // the same for the output's gradient
  const float *lse, *delta;
  float *scores, *products;
  bf16 *left, *packed;

  void probabilities(int64_t query, float scale) const {
    for (int w = 0; w < 4; w++) {
      const Floats shift = load_float(lse + query + 16 * w);
      for (int key = 0; key < BLOCK; key++) {
        float* at = scores + key * BLOCK + 16 * w;
        Floats p = exp_ps(fms(load_float(at), spread(scale), shift));
        store_float(at, p);
        store_bf16(left + key * BLOCK + 16 * w, p);
      }
    }
  }
  void score_gradients(int64_t query, float scale) const {
    for (int w = 0; w < 4; w++) {
      const Floats shift = load_float(delta + query + 16 * w), factor = spread(scale);
      for (int key = 0; key < BLOCK; key += 2) {
        const int at = key * BLOCK + 16 * w;
        Floats a = load_float(scores + at) * factor * (load_float(products + at) - shift);
        Floats b =
            load_float(scores + at + BLOCK) * factor * (load_float(products + at + BLOCK) - shift);
        store_bf16(left + at, a);
        store_bf16(left + at + BLOCK, b);
        store_ints(packed + key * BLOCK + 32 * w, pair_rows(a, b));
      }
    }
  }
  void run(const Shape& s, int64_t key, int64_t query, float scale, Gradients& g) const {
    const int head = (int)s.head;
    product<64, false>(keys + key * head, head, queries + query * head, BLOCK, scores, BLOCK, BLOCK,
                       head);
    mask_tile(scores, s, key, query);
    probabilities(query, scale);
    product_head(left, BLOCK, outputs_pairs + query * head, g.dv + key * head, head, BLOCK, BLOCK);
    product<64, false>(values + key * head, head, outputs + query * head, BLOCK, products, BLOCK,
                       BLOCK, head);
    score_gradients(query, scale);
    product_head(left, BLOCK, queries_pairs + query * head, g.dk + key * head, head, BLOCK, BLOCK);
    product<64, true>(keys_transposed + key, s.padded, packed, BLOCK,
                      g.dq_transposed + query * head, BLOCK, head, BLOCK);
  }
};

void row_sums(const bf16* a, const bf16* b, const Shape& s, float* out) {
  for (int64_t t = 0; t < s.positions; t++) {
    Floats sum = zeros();
    for (int64_t h = 0; h < s.width; h += 16) {
      Mask mask = tail(s.width - h);
      const int64_t at = t * s.heads * s.width + h;
      sum = fma(load_bf16(a + at, mask), load_bf16(b + at, mask), sum);
    }
    out[t] = sum_of(sum);
  }
}

void backward_head(const bf16* q, const bf16* k, const bf16* v, const bf16* out, const bf16* dout,
                   const float* lse, const Shape& s, const float* cos, const float* sin, bf16* dq,
                   float* dk, float* dv) {
  const int64_t plane = s.padded * s.head;
  scratch.reserve(plane * (2 * 9 + 4) + BLOCK * BLOCK * 12 + s.padded * 8 + s.head * BLOCK * 4 +
                  8192);
  bf16 *keys = take<bf16>(plane), *values = take<bf16>(plane), *turned_keys = take<bf16>(plane),
       *rows = take<bf16>(plane), *pairs = take<bf16>(plane), *queries = take<bf16>(plane),
       *queries_pairs = take<bf16>(plane), *outputs = take<bf16>(plane),
       *outputs_pairs = take<bf16>(plane);
  float *dq_transposed = take<float>(plane), *shift = take<float>(s.padded),
        *delta = take<float>(s.padded), *turned = take<float>(s.head * BLOCK);
  copy_rows(k, s.columns(), s, cos, sin, keys);
  transpose_rows(keys, s, pairs, turned_keys);
  copy_rows(v, s.columns(), s, nullptr, nullptr, values);
  copy_rows(q, s.columns(), s, cos, sin, rows);
  pack_blocks(rows, s, queries);
  pack_rows(rows, s.head, (int)s.padded, (int)s.head, queries_pairs);
  copy_rows(dout, s.heads * s.width, s, nullptr, nullptr, rows);
  pack_blocks(rows, s, outputs);
  pack_rows(rows, s.head, (int)s.padded, (int)s.head, outputs_pairs);
  row_sums(out, dout, s, delta);
  memcpy(shift, lse, s.positions * 4);
  for (int64_t t = s.positions; t < s.padded; t++) shift[t] = delta[t] = 0.0f;
  memset(dq_transposed, 0, plane * 4);
  memset(dk, 0, plane * 4);
  memset(dv, 0, plane * 4);
  BackwardTile tile{keys,
                    values,
                    turned_keys,
                    queries,
                    queries_pairs,
                    outputs,
                    outputs_pairs,
                    shift,
                    delta,
                    take<float>(BLOCK * BLOCK),
                    take<float>(BLOCK * BLOCK),
                    take<bf16>(BLOCK * BLOCK),
                    take<bf16>(BLOCK * BLOCK)};
  Gradients gradients{dk, dv, dq_transposed};
  const float scale = 1.0f / std::sqrt((float)s.width);
  for (int64_t key = 0; key < s.padded; key += BLOCK)
    for (int64_t query = s.causal ? key : 0; query < s.padded; query += BLOCK)
      tile.run(s, key, query, scale, gradients);
  for (int64_t query = 0; query < s.positions; query += BLOCK) {
    transpose_block(dq_transposed + query * s.head, s.head, turned);
    for (int64_t i = 0; i < BLOCK && query + i < s.positions; i++)
      store_row(turned + i * s.head, s, cos, sin, query + i, dq + (query + i) * s.columns());
  }
}

// Sum the gradients of the heads that share a key and value head, and write them as bf16.
void store_shared(float* sums, const Shape& s, const float* cos, const float* sin, int64_t first,
                  int64_t group, bf16* out) {
  const int64_t plane = s.padded * s.head;
  for (int64_t t = 0; t < s.positions; t++) {
    float* row = sums + first * 2 * plane + t * s.head;
    for (int64_t g = 1; g < group; g++)
      for (int64_t h = 0; h < s.head; h++) row[h] += row[g * 2 * plane + h];
    store_row(row, s, cos, sin, t, out + t * s.columns());
  }
}

// All documents: where each begins, and behind the last one the end.
struct Documents {
  const int64_t* begins;
  int64_t heads, kv_heads, width;
  bool causal;
  Shape shape(int64_t number) const {
    const int64_t positions = begins[number + 1] - begins[number];
    return {positions, heads, kv_heads, width, causal, up(positions, BLOCK), up(width, 32)};
  }
};

// Documents whose gradients of shared heads are summed at once: as many as share the scratch.
constexpr int64_t TOGETHER = 1024;

int64_t take_together(const Documents& all, int64_t first, int64_t count) {
  int64_t padded = 0, stop = first;
  while (stop < count && (stop == first || padded + all.shape(stop).padded <= TOGETHER))
    padded += all.shape(stop++).padded;
  return stop;
}

}  // namespace

extern "C" {

// qkv [M][(N+2K)H] bf16 → out [M][N·H] bf16 and lse, N·T fp32 of each document. `begins`: where
// each of `documents` begins, and the end. `cos`, `sin`: [T][H/2] fp32, or null for no rotary
// positions.
void narrows_attention_forward(const bf16* qkv, const float* cos, const float* sin, bf16* out,
                               float* lse, const int64_t* begins, int64_t documents, int64_t heads,
                               int64_t kv_heads, int64_t width, int64_t causal) {
  const Documents all{begins, heads, kv_heads, width, causal != 0};
  const int64_t group = heads / kv_heads;
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < documents * heads; task++) {
    const int64_t number = task / heads, n = task % heads, at = begins[number];
    const Shape s = all.shape(number);
    const bf16* row = qkv + at * s.columns();
    forward_head(row + n * width, row + (heads + n / group) * width,
                 row + (heads + kv_heads + n / group) * width, s, cos, sin,
                 out + at * heads * width + n * width, lse + at * heads + n * s.positions);
  }
}

// Gradient of the above into dqkv. `sums`: fp32 scratch of narrows_attention_scratch values.
void narrows_attention_backward(const bf16* qkv, const float* cos, const float* sin,
                                const bf16* out, const bf16* dout, const float* lse, float* sums,
                                bf16* dqkv, const int64_t* begins, int64_t documents, int64_t heads,
                                int64_t kv_heads, int64_t width, int64_t causal) {
  const Documents all{begins, heads, kv_heads, width, causal != 0};
  const int64_t group = heads / kv_heads;
  for (int64_t first = 0, stop; first < documents; first = stop) {
    stop = take_together(all, first, documents);
    const int64_t count = stop - first;
    // Of documents that are taken together each has its sums behind those before it.
    auto own = [&](int64_t number) {
      float* place = sums;
      for (int64_t d = first; d < number; d++) {
        const Shape s = all.shape(d);
        place += heads * 2 * s.padded * s.head;
      }
      return place;
    };
#pragma omp parallel
    {
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < count * heads; task++) {
        const int64_t number = first + task / heads, n = task % heads, at = begins[number];
        const Shape s = all.shape(number);
        const int64_t plane = s.padded * s.head, to = at * heads * width + n * width;
        const bf16* row = qkv + at * s.columns();
        float* sum = own(number) + n * 2 * plane;
        backward_head(row + n * width, row + (heads + n / group) * width,
                      row + (heads + kv_heads + n / group) * width, out + to, dout + to,
                      lse + at * heads + n * s.positions, s, cos, sin,
                      dqkv + at * s.columns() + n * width, sum, sum + plane);
      }
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < count * kv_heads; task++) {
        const int64_t number = first + task / kv_heads, k = task % kv_heads;
        const Shape s = all.shape(number);
        bf16* drow = dqkv + begins[number] * s.columns();
        float* sum = own(number);
        store_shared(sum, s, cos, sin, k * group, group, drow + (heads + k) * width);
        store_shared(sum + s.padded * s.head, s, nullptr, nullptr, k * group, group,
                     drow + (heads + kv_heads + k) * width);
      }
    }
  }
}

// How many fp32 values the backward pass needs for its sums.
int64_t narrows_attention_scratch(const int64_t* begins, int64_t documents, int64_t heads,
                                  int64_t width) {
  const Documents all{begins, heads, heads, width, true};
  int64_t most = 0;
  for (int64_t first = 0, stop; first < documents; first = stop) {
    stop = take_together(all, first, documents);
    int64_t padded = 0;
    for (int64_t d = first; d < stop; d++) padded += all.shape(d).padded;
    most = padded > most ? padded : most;
  }
  return heads * 2 * most * up(width, 32);
}
}
