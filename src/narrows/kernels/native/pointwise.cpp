// The operations between the products: norms, activations, softmax cross entropy. Each reads and
// writes its operands once. Work is split statically, so sums do not depend on timing.
#include <algorithm>
#include <cmath>

#include "shares.h"
#include "simd.h"

namespace {

// s(2u) of GELU's tanh form and its derivative: gelu(h) = h · s, u = √(2/π) (h + 0.044715 h³).
inline __m512 gelu_gate(__m512 h, __m512& slope) {
  const __m512 root = _mm512_set1_ps(2 * 0.7978845608028654f), cubic = _mm512_set1_ps(0.044715f);
  const __m512 one = _mm512_set1_ps(1.0f), square = _mm512_mul_ps(h, h);
  __m512 twice = _mm512_mul_ps(root, _mm512_fmadd_ps(_mm512_mul_ps(cubic, square), h, h));
  const __m512 triple = _mm512_mul_ps(cubic, _mm512_set1_ps(3.0f));
  slope = _mm512_mul_ps(root, _mm512_fmadd_ps(triple, square, one));
  return _mm512_div_ps(one, _mm512_add_ps(one, exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), twice))));
}

inline __m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(one, _mm512_add_ps(one, exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

void norm_row(const bf16* x, const bf16* delta, const bf16* weight, const bf16* bias, bf16* sum,
              bf16* out, float* stats, int64_t width, float epsilon, bool centre) {
  __m512 total = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
  each16(width, [&](int64_t d, auto lanes) {
    __m512 value = load_bf16(x + d, lanes);
    if (delta) {
      store_bf16(sum + d, _mm512_add_ps(value, load_bf16(delta + d, lanes)), lanes);
      value = load_bf16(sum + d, lanes);
    }
    total = _mm512_add_ps(total, value);
    squares = _mm512_fmadd_ps(value, value, squares);
  });
  const float mean = centre ? _mm512_reduce_add_ps(total) / width : 0.0f;
  const float variance = _mm512_reduce_add_ps(squares) / width - mean * mean;
  const float inverse = 1.0f / std::sqrt(std::max(variance, 0.0f) + epsilon);
  stats[0] = mean;
  stats[1] = inverse;
  const bf16* source = delta ? sum : x;
  const __m512 shift = _mm512_set1_ps(mean), factor = _mm512_set1_ps(inverse);
  each16(width, [&](int64_t d, auto lanes) {
    __m512 y = _mm512_mul_ps(_mm512_sub_ps(load_bf16(source + d, lanes), shift), factor);
    y = _mm512_mul_ps(y, load_bf16(weight + d, lanes));
    if (bias) y = _mm512_add_ps(y, load_bf16(bias + d, lanes));
    store_bf16(out + d, y, lanes);
  });
}

// dx = inverse · (g - mean(g) - n · mean(g · n)) + the gradient that bypasses the norm, where n is
// the normalised input and g = dy · weight. RMSNorm leaves the first mean out.
void norm_row_backward(const bf16* dy, const bf16* bypass, const bf16* x, const bf16* weight,
                       const float* stats, bf16* dx, float* dweight, float* dbias, int64_t width,
                       bool centre) {
  const __m512 shift = _mm512_set1_ps(stats[0]), factor = _mm512_set1_ps(stats[1]);
  __m512 sum = _mm512_setzero_ps(), along = _mm512_setzero_ps();
  each16(width, [&](int64_t d, auto lanes) {
    __m512 n = kept(_mm512_mul_ps(_mm512_sub_ps(load_bf16(x + d, lanes), shift), factor), lanes);
    __m512 up = load_bf16(dy + d, lanes), g = _mm512_mul_ps(up, load_bf16(weight + d, lanes));
    store_float(dweight + d, _mm512_fmadd_ps(up, n, load_float(dweight + d, lanes)), lanes);
    store_float(dbias + d, _mm512_add_ps(up, load_float(dbias + d, lanes)), lanes);
    sum = _mm512_add_ps(sum, g);
    along = _mm512_fmadd_ps(g, n, along);
  });
  const __m512 mean = _mm512_set1_ps(centre ? _mm512_reduce_add_ps(sum) / width : 0.0f);
  const __m512 slope = _mm512_set1_ps(_mm512_reduce_add_ps(along) / width);
  each16(width, [&](int64_t d, auto lanes) {
    __m512 n = _mm512_mul_ps(_mm512_sub_ps(load_bf16(x + d, lanes), shift), factor);
    __m512 g = _mm512_mul_ps(load_bf16(dy + d, lanes), load_bf16(weight + d, lanes));
    __m512 out = _mm512_mul_ps(_mm512_sub_ps(_mm512_fnmadd_ps(n, slope, g), mean), factor);
    if (bypass) out = _mm512_add_ps(out, load_bf16(bypass + d, lanes));
    store_bf16(dx + d, out, lanes);
  });
}

// Loss of one row; the logits become their gradient, softmax - onehot, times `scale`.
float cross_entropy_row(bf16* logits, int64_t target, float scale, int64_t vocabulary) {
  const __m512 lowest = _mm512_set1_ps(-1e30f);
  __m512 top = lowest;
  int64_t v = 0;
  for (; v + 16 <= vocabulary; v += 16) top = _mm512_max_ps(top, load_bf16(logits + v));
  if (v < vocabulary) {
    const __mmask16 mask = tail(vocabulary - v);
    top = _mm512_max_ps(top, _mm512_mask_mov_ps(lowest, mask, load_bf16(logits + v, mask)));
  }
  const float peak = _mm512_reduce_max_ps(top);
  const __m512 shift = _mm512_set1_ps(peak);
  __m512 sum = _mm512_setzero_ps();
  each16(vocabulary, [&](int64_t i, auto lanes) {
    __m512 e = exp_ps(_mm512_sub_ps(load_bf16(logits + i, lanes), shift));
    sum = _mm512_add_ps(sum, kept(e, lanes));
  });
  const float lse = peak + std::log(_mm512_reduce_add_ps(sum));
  const float loss = lse - to_float(logits[target]);
  const float own = scale * (std::exp(-loss) - 1.0f);
  const __m512 factor = _mm512_set1_ps(scale), whole = _mm512_set1_ps(lse);
  each16(vocabulary, [&](int64_t i, auto lanes) {
    __m512 p = exp_ps(_mm512_sub_ps(load_bf16(logits + i, lanes), whole));
    store_bf16(logits + i, _mm512_mul_ps(p, factor), lanes);
  });
  logits[target] = to_bf16(own);
  return loss;
}

}  // namespace

extern "C" {

// Threads that a parallel region may have, whatever torch counts: the scratch of sums below.
int64_t narrows_threads() { return omp_get_max_threads(); }

// y = norm(x + delta) · weight + bias over rows of `width`; `sum` receives x + delta. `delta`,
// `bias` may be null. `stats`: [rows][2], mean and inverse deviation.
void narrows_norm_forward(const bf16* x, const bf16* delta, const bf16* weight, const bf16* bias,
                          bf16* sum, bf16* out, float* stats, int64_t rows, int64_t width,
                          float epsilon, int32_t centre) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++)
    norm_row(x + r * width, delta ? delta + r * width : nullptr, weight, bias,
             sum ? sum + r * width : nullptr, out + r * width, stats + 2 * r, width, epsilon,
             centre);
}

// `bypass`: gradient of the sum that goes around the norm, or null. `partial`: zeroed fp32 scratch
// [threads][2][width]; its sum over threads is written to dweight and dbias (bf16; dbias or null).
void narrows_norm_backward(const bf16* dy, const bf16* bypass, const bf16* x, const bf16* weight,
                           const float* stats, bf16* dx, float* partial, bf16* dweight,
                           bf16* dbias, int64_t rows, int64_t width, int32_t centre) {
  int threads = 1;
#pragma omp parallel
  {
#pragma omp single
    threads = omp_get_num_threads();
    float* mine = partial + (int64_t)omp_get_thread_num() * 2 * width;
    const Range range = own_range(rows, 1);
    for (int64_t r = range.begin; r < range.end; r++)
      norm_row_backward(dy + r * width, bypass ? bypass + r * width : nullptr, x + r * width,
                        weight, stats + 2 * r, dx + r * width, mine, mine + width, width, centre);
  }
  for (int64_t d = 0; d < width; d++) {
    float w = 0.0f, b = 0.0f;
    for (int t = 0; t < threads; t++) {
      w += partial[(int64_t)t * 2 * width + d];
      b += partial[(int64_t)t * 2 * width + width + d];
    }
    dweight[d] = to_bf16(w);
    if (dbias) dbias[d] = to_bf16(b);
  }
}

void narrows_gelu_forward(const bf16* h, bf16* out, int64_t count) {
  share16(count, [&](int64_t i, auto lanes) {
    __m512 x = load_bf16(h + i, lanes), slope;
    store_bf16(out + i, _mm512_mul_ps(x, gelu_gate(x, slope)), lanes);
  });
}

// The activation again, and the gradient of its input.
void narrows_gelu_backward(const bf16* h, const bf16* dy, bf16* out, bf16* dh, int64_t count) {
  share16(count, [&](int64_t i, auto lanes) {
    __m512 x = load_bf16(h + i, lanes), slope;
    __m512 s = gelu_gate(x, slope), y = _mm512_mul_ps(x, s);
    __m512 rest = _mm512_sub_ps(_mm512_set1_ps(1.0f), s);
    __m512 d = _mm512_fmadd_ps(_mm512_mul_ps(y, rest), slope, s);
    __m512 g = _mm512_mul_ps(load_bf16(dy + i, lanes), d);
    store_bf16(out + i, y, lanes);
    store_bf16(dh + i, g, lanes);
  });
}

// Rows [gate | up] of 2 · width → silu(gate) · up.
void narrows_swiglu_forward(const bf16* gate_up, bf16* out, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    const bf16* row = gate_up + r * 2 * width;
    each16(width, [&](int64_t f, auto lanes) {
      __m512 gate = load_bf16(row + f, lanes), up = load_bf16(row + width + f, lanes);
      __m512 y = _mm512_mul_ps(_mm512_mul_ps(gate, sigmoid(gate)), up);
      store_bf16(out + r * width + f, y, lanes);
    });
  }
}

void narrows_swiglu_backward(const bf16* gate_up, const bf16* dy, bf16* out, bf16* dgate_up,
                             int64_t rows, int64_t width) {
  const __m512 one = _mm512_set1_ps(1.0f);
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    const int64_t at = r * 2 * width;
    each16(width, [&](int64_t f, auto lanes) {
      __m512 gate = load_bf16(gate_up + at + f, lanes);
      __m512 up = load_bf16(gate_up + at + width + f, lanes);
      __m512 s = sigmoid(gate), silu = _mm512_mul_ps(gate, s);
      __m512 g = load_bf16(dy + r * width + f, lanes);
      __m512 slope = _mm512_mul_ps(s, _mm512_fmadd_ps(gate, _mm512_sub_ps(one, s), one));
      store_bf16(out + r * width + f, _mm512_mul_ps(silu, up), lanes);
      store_bf16(dgate_up + at + f, _mm512_mul_ps(_mm512_mul_ps(g, up), slope), lanes);
      store_bf16(dgate_up + at + width + f, _mm512_mul_ps(g, silu), lanes);
    });
  }
}

// Loss of each row; the logits become their gradient times `scale`. A negative target counts for
// nothing: loss 0, gradient 0.
void narrows_cross_entropy(bf16* logits, const int64_t* targets, float* losses, float scale,
                           int64_t rows, int64_t vocabulary) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    bf16* row = logits + r * vocabulary;
    if (targets[r] < 0) {
      losses[r] = 0.0f;
      memset(row, 0, vocabulary * 2);
    } else {
      losses[r] = cross_entropy_row(row, targets[r], scale, vocabulary);
    }
  }
}

// out[n] = sum over rows of x[row][n]: the gradient of a bias.
void narrows_column_sum(const bf16* x, bf16* out, int64_t rows, int64_t columns) {
#pragma omp parallel
  {
    constexpr int64_t STRIPE = 256;
    float sums[STRIPE];
    const Range range = own_range(columns, 16);
    for (int64_t first = range.begin; first < range.end; first += STRIPE) {
      const int64_t width = std::min(STRIPE, range.end - first);
      std::fill(sums, sums + STRIPE, 0.0f);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i += 16) {
          __m512 value = load_bf16(x + r * columns + first + i, tail(width - i));
          _mm512_storeu_ps(sums + i, _mm512_add_ps(_mm512_loadu_ps(sums + i), value));
        }
      for (int64_t i = 0; i < width; i++) out[first + i] = to_bf16(sums[i]);
    }
  }
}
}
