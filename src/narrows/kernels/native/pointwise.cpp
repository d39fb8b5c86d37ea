// The operations between the products: norms, activations, softmax cross entropy. Each reads and
// writes its operands once. Work is split statically, so sums do not depend on timing.
#include <algorithm>
#include <cmath>

#include "activations.h"
#include "shares.h"

namespace {

void norm_row(const bf16* x, const bf16* delta, const bf16* weight, const bf16* bias, bf16* sum,
              bf16* out, float* stats, int64_t width, float epsilon, bool centre) {
  Floats total = zeros(), squares = zeros();
  each16(width, [&](int64_t d, auto lanes) {
    Floats value = load_bf16(x + d, lanes);
    if (delta) {
      store_bf16(sum + d, value + load_bf16(delta + d, lanes), lanes);
      value = load_bf16(sum + d, lanes);
    }
    total = total + value;
    squares = fma(value, value, squares);
  });
  const float mean = centre ? sum_of(total) / width : 0.0f;
  const float variance = sum_of(squares) / width - mean * mean;
  const float inverse = 1.0f / std::sqrt(std::max(variance, 0.0f) + epsilon);
  stats[0] = mean;
  stats[1] = inverse;
  const bf16* source = delta ? sum : x;
  const Floats shift = spread(mean), factor = spread(inverse);
  each16(width, [&](int64_t d, auto lanes) {
    Floats y = (load_bf16(source + d, lanes) - shift) * factor;
    y = y * load_bf16(weight + d, lanes);
    if (bias) y = y + load_bf16(bias + d, lanes);
    store_bf16(out + d, y, lanes);
  });
}

// dx = inverse · (g - mean(g) - n · mean(g · n)) + the gradient that bypasses the norm, where n is
// the normalised input and g = dy · weight. RMSNorm leaves the first mean out.
void norm_row_backward(const bf16* dy, const bf16* bypass, const bf16* x, const bf16* weight,
                       const float* stats, bf16* dx, float* dweight, float* dbias, int64_t width,
                       bool centre) {
  const Floats shift = spread(stats[0]), factor = spread(stats[1]);
  Floats sum = zeros(), along = zeros();
  each16(width, [&](int64_t d, auto lanes) {
    Floats n = kept((load_bf16(x + d, lanes) - shift) * factor, lanes);
    Floats up = load_bf16(dy + d, lanes), g = up * load_bf16(weight + d, lanes);
    store_float(dweight + d, fma(up, n, load_float(dweight + d, lanes)), lanes);
    store_float(dbias + d, up + load_float(dbias + d, lanes), lanes);
    sum = sum + g;
    along = fma(g, n, along);
  });
  const Floats mean = spread(centre ? sum_of(sum) / width : 0.0f);
  const Floats slope = spread(sum_of(along) / width);
  each16(width, [&](int64_t d, auto lanes) {
    Floats n = (load_bf16(x + d, lanes) - shift) * factor;
    Floats g = load_bf16(dy + d, lanes) * load_bf16(weight + d, lanes);
    Floats out = (fnma(n, slope, g) - mean) * factor;
    if (bypass) out = out + load_bf16(bypass + d, lanes);
    store_bf16(dx + d, out, lanes);
  });
}

// Loss of one row; the logits become their gradient, softmax - onehot, times `scale`.
float cross_entropy_row(bf16* logits, int64_t target, float scale, int64_t vocabulary) {
  const Floats lowest = spread(-1e30f);
  Floats top = lowest;
  int64_t v = 0;
  for (; v + 16 <= vocabulary; v += 16) top = max(top, load_bf16(logits + v));
  if (v < vocabulary) {
    const Mask mask = tail(vocabulary - v);
    top = max(top, select(mask, load_bf16(logits + v, mask), lowest));
  }
  const float peak = most_of(top);
  const Floats shift = spread(peak);
  Floats sum = zeros();
  each16(vocabulary, [&](int64_t i, auto lanes) {
    Floats e = exp_ps(load_bf16(logits + i, lanes) - shift);
    sum = sum + kept(e, lanes);
  });
  const float lse = peak + std::log(sum_of(sum));
  const float loss = lse - to_float(logits[target]);
  const float own = scale * (std::exp(-loss) - 1.0f);
  const Floats factor = spread(scale), whole = spread(lse);
  each16(vocabulary, [&](int64_t i, auto lanes) {
    Floats p = exp_ps(load_bf16(logits + i, lanes) - whole);
    store_bf16(logits + i, p * factor, lanes);
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
                           const float* stats, bf16* dx, float* partial, bf16* dweight, bf16* dbias,
                           int64_t rows, int64_t width, int32_t centre) {
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
    Floats x = load_bf16(h + i, lanes), slope;
    store_bf16(out + i, x * gelu_gate(x, slope), lanes);
  });
}

// The activation again, and the gradient of its input.
void narrows_gelu_backward(const bf16* h, const bf16* dy, bf16* out, bf16* dh, int64_t count) {
  share16(count, [&](int64_t i, auto lanes) {
    Floats x = load_bf16(h + i, lanes), slope;
    Floats s = gelu_gate(x, slope), y = x * s;
    Floats rest = spread(1.0f) - s;
    Floats d = fma(y * rest, slope, s);
    Floats g = load_bf16(dy + i, lanes) * d;
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
      Floats gate = load_bf16(row + f, lanes), up = load_bf16(row + width + f, lanes);
      Floats y = gate * sigmoid(gate) * up;
      store_bf16(out + r * width + f, y, lanes);
    });
  }
}

void narrows_swiglu_backward(const bf16* gate_up, const bf16* dy, bf16* out, bf16* dgate_up,
                             int64_t rows, int64_t width) {
  const Floats one = spread(1.0f);
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    const int64_t at = r * 2 * width;
    each16(width, [&](int64_t f, auto lanes) {
      Floats gate = load_bf16(gate_up + at + f, lanes);
      Floats up = load_bf16(gate_up + at + width + f, lanes);
      Floats s = sigmoid(gate), silu = gate * s;
      Floats g = load_bf16(dy + r * width + f, lanes);
      Floats slope = s * fma(gate, one - s, one);
      store_bf16(out + r * width + f, silu * up, lanes);
      store_bf16(dgate_up + at + f, g * up * slope, lanes);
      store_bf16(dgate_up + at + width + f, g * silu, lanes);
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
          Floats value = load_bf16(x + r * columns + first + i, tail(width - i));
          store_float(sums + i, load_float(sums + i) + value);
        }
      for (int64_t i = 0; i < width; i++) out[first + i] = to_bf16(sums[i]);
    }
  }
}
}
