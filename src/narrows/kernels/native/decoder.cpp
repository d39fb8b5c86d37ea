// New tokens of several sequences through a decoder, all layers in one call by one team of threads,
// which meet at barriers where one needs what another made.
//
//   table → stream x → L × (norm, qkv, turn and keep, attend, out; norm, up, down) → norm → head
//
// Every row is computed by the same operations whatever stands beside it. How a sequence's keys and
// values lie is said in cache.h.
#include <omp.h>

#include <limits>
#include <optional>

#include "activations.h"
#include "barrier.h"
#include "cache.h"
#include "low_rank.h"
#include "norm.h"
#include "quantized.h"

namespace {

enum { QKV, OUT, UP, DOWN, MATRICES };  // as an adapter has them of a layer

// Without a window it is the room.
struct Layer {
  Norm norm, query_norm, key_norm;
  Matrix qkv, out;
  Norm out_norm, second_norm;
  Matrix up, down;
  Norm down_norm;
  const float *cos, *sin;  // [positions][turned / 2]
  int64_t window;
};

struct Decoder {
  const Layer* layers;
  int64_t count, width, heads, kv_heads, head_width, room;  // room: positions of a cache
  float epsilon, query_scale, embedding_scale, logit_scale;
  float score_cap, logit_cap;          // infinite where there is none
  int64_t activation, gated, centred;  // of the feed-forward, and whether norms take the mean away
  int64_t turned;                      // of a head, by position
  const float* positions;              // [room][width] that join the tokens, or null
  Matrix table;
  Norm norm;
  Matrix head;
  int64_t coded;  // whether caches are in int8, else in bf16
};

// Rows `first` to `first + count` are the tokens of one sequence at positions from `start` on.
struct Sequence {
  uint8_t* cache;
  int64_t first, count, start;
};

struct Step {
  const Sequence* sequences;
  int64_t count;
  const int64_t* tokens;
  int64_t rows;
  const int64_t* wanted;  // rows whose logits are asked for
  int64_t wanted_count;
  float* logits;  // [wanted][vocabulary, in whole panels]
  float *x, *y, *qkv;
  bf16* queries;            // [rows][heads][H], or codes of sixteen bits
  float* query_scales;      // [rows][heads], of codes
  Codes narrow, wide, out;  // of the width, of the feed-forward, of all heads
  float* scores;            // [threads][TILE][room]
  int64_t threads;
  Adapters adapters;
};

// One thread's part of a step.
class Member {
 public:
  Member(const Decoder& d, const Step& s, Barrier& barrier, int64_t me)
      : d(d), s(s), barrier(barrier), me(me) {}

  void run() {
    each(s.rows, [&](int64_t r) {
      unpack_row(d.table, s.tokens[r], x(r));
      for (int64_t i = 0; i < d.width; i++) x(r)[i] *= d.embedding_scale;
      if (!d.positions) return;
      const float* learned = d.positions + position(r) * d.width;
      for (int64_t i = 0; i < d.width; i++) x(r)[i] += learned[i];
    });
    for (int64_t l = 0; l < d.count; l++) {
      const Layer& layer = d.layers[l];
      each(s.rows, [&](int64_t r) { enter(layer.norm, r, r); });
      barrier.wait();
      const int64_t columns = layer.qkv.rows, low = l * MATRICES;
      lower(low + QKV, s.narrow);
      share(layer.qkv, s.narrow, s.rows, [&](int64_t r, int64_t p, Floats value) {
        value = s.adapters.added(low + QKV, r, p, value);
        store_float(s.qkv + r * columns + p * PANEL, value);
      });
      barrier.wait();
      with_kind([&](auto kind) {
        using K = decltype(kind);
        const int64_t items = s.count * (d.heads + 2 * d.kv_heads);
        each(items, [&](int64_t i) { place<K>(layer, l, i); });
        barrier.wait();
        attend<K>(layer, l);
      });
      barrier.wait();
      add(layer.out, low + OUT, s.out, layer.out_norm);
      each(s.rows, [&](int64_t r) { enter(layer.second_norm, r, r); });
      barrier.wait();
      feed_forward(layer.up, low + UP);
      barrier.wait();
      add(layer.down, low + DOWN, s.wide, layer.down_norm);
    }
    barrier.wait();
    each(s.wanted_count, [&](int64_t i) { enter(d.norm, s.wanted[i], i); });
    barrier.wait();
    const int64_t columns = d.head.count() * PANEL;
    share(d.head, s.narrow, s.wanted_count, [&](int64_t r, int64_t p, Floats value) {
      value = capped(value * spread(d.logit_scale), d.logit_cap);
      store_float(s.logits + r * columns + p * PANEL, value);
    });
  }

 private:
  float* x(int64_t r) const { return s.x + r * d.width; }

  int64_t position(int64_t row) const {
    const Sequence* own = s.sequences;
    while (row >= own->first + own->count) own++;
    return own->start + row - own->first;
  }

  template <class F>
  void each(int64_t count, F f) const {
    const int64_t end = count * (me + 1) / s.threads;
    for (int64_t i = count * me / s.threads; i < end; i++) f(i);
  }

  template <class F>
  void share(const Matrix& w, const Codes& codes, int64_t rows, F emit) const {
    const int64_t panels = w.count();
    product(w, codes, rows, panels * me / s.threads, panels * (me + 1) / s.threads, emit);
  }

  // What adapters make of rows, as far as A: all of it, before any is added to a product.
  void lower(int64_t low, const Codes& codes) const {
    if (!s.adapters.rows) return;
    const int64_t pieces = s.rows * s.adapters.pieces();
    s.adapters.multiply(low, codes, pieces * me / s.threads, pieces * (me + 1) / s.threads, me);
    barrier.wait();
  }

  // A product, normalised where there is a norm, joins the stream.
  void add(const Matrix& w, int64_t low, const Codes& codes, const Norm& norm) const {
    float* into = norm.weight ? s.y : s.x;
    lower(low, codes);
    share(w, codes, s.rows, [&](int64_t r, int64_t p, Floats value) {
      value = s.adapters.added(low, r, p, value);
      float* at = into + r * d.width + p * PANEL;
      store_float(at, norm.weight ? value : load_float(at) + value);
    });
    barrier.wait();
    if (!norm.weight) return;
    each(s.rows, [&](int64_t r) {
      float* y = s.y + r * d.width;
      normed(y, norm, d.width, d.epsilon, d.centred, y);
      for (int64_t i = 0; i < d.width; i++) x(r)[i] += y[i];
    });
  }

  void enter(const Norm& norm, int64_t from, int64_t to) const {
    float* y = s.y + to * d.width;
    normed(x(from), norm, d.width, d.epsilon, d.centred, y);
    s.narrow.set(to, y);
  }

  // The activation of the first matrix, or of the gate times up, thirty-two columns at a time.
  void feed_forward(const Matrix& up, int64_t low) const {
    lower(low, s.narrow);
    const int64_t panels = up.count() / (1 + d.gated), groups = panels / 2;
    for (int64_t g = groups * me / s.threads; g < groups * (me + 1) / s.threads; g++)
      for (int64_t first = 0; first < s.rows; first += TILE) {
        const int64_t some = std::min(TILE, s.rows - first);
        Floats gate[2][TILE], value[2][TILE];
        const auto read = [&](int64_t p, Floats* into) {
          tile(up, p, s.narrow, first, some, into);
          for (int64_t m = 0; m < some; m++) {
            if (up.bias) into[m] = into[m] + load_float(up.bias + p * PANEL);
            into[m] = s.adapters.added(low, first + m, p, into[m]);
          }
        };
        for (int64_t i = 0; i < 2; i++) {
          read(2 * g + i, gate[i]);
          if (d.gated) read(panels + 2 * g + i, value[i]);
        }
        for (int64_t m = 0; m < some; m++) {
          Floats y[2];
          for (int64_t i = 0; i < 2; i++) {
            y[i] = activated(gate[i][m], d.activation);
            if (d.gated) y[i] = y[i] * value[i][m];
          }
          s.wide.set(first + m, g, y[0], y[1]);
        }
      }
  }

  // f(the kind of all caches).
  template <class F>
  void with_kind(F f) const {
    if (d.coded)
      f(Coded{});
    else
      f(Narrow{});
  }

  // Of one layer and key head: keys, and behind them values.
  template <class K>
  uint8_t* keys(uint8_t* cache, int64_t layer, int64_t head) const {
    return cache + (layer * d.kv_heads + head) * 2 * side<K>();
  }
  template <class K>
  int64_t side() const {
    return d.room / BLOCK * K::bytes(d.head_width);
  }

  // Of one sequence and one head of [queries | keys | values]: turned by position, and kept.
  template <class K>
  void place(const Layer& layer, int64_t l, int64_t item) const {
    const int64_t all = d.heads + 2 * d.kv_heads, H = d.head_width, columns = layer.qkv.rows;
    const Sequence& own = s.sequences[item / all];
    const int64_t head = item % all, key_head = (head - d.heads) % d.kv_heads;
    float* from = s.qkv + own.first * columns + head * H;
    const bool query = head < d.heads;
    uint8_t* into = query ? nullptr : keys<K>(own.cache, l, key_head);
    if (head >= d.heads + d.kv_heads)
      return K::keep_values(into + side<K>(), own.start, own.count, from, columns, H);
    const Norm& norm = query ? layer.query_norm : layer.key_norm;
    for (int64_t i = 0; i < own.count; i++, from += columns) {
      if (norm.weight) normed(from, norm, H, d.epsilon, false, from);
      turn(layer, from, own.start + i);
      const int64_t to = (own.first + i) * d.heads + head;
      if (query)
        K::keep_query(from, H, d.query_scale, s.queries + to * H, s.query_scales + to);
      else
        K::keep_key(into, own.start + i, from, H);
    }
  }

  void turn(const Layer& layer, float* head, int64_t position) const {
    const int64_t half = d.turned / 2;
    const float *cos = layer.cos + position * half, *sin = layer.sin + position * half;
    each16(half, [&](int64_t h, auto lanes) {
      const Floats a = load_float(head + h, lanes), b = load_float(head + half + h, lanes);
      const Floats c = load_float(cos + h, lanes), n = load_float(sin + h, lanes);
      store_float(head + h, fms(a, c, b * n), lanes);
      store_float(head + half + h, fma(b, c, a * n), lanes);
    });
  }

  // All queries of a sequence that share a key head, some at a time; items go round the team.
  template <class K>
  void attend(const Layer& layer, int64_t l) const {
    const int64_t group = d.heads / d.kv_heads;
    const int64_t some = s.rows * d.heads >= 8 * TILE * s.threads ? TOGETHER : 1;
    int64_t item = 0;
    for (int64_t i = 0; i < s.count; i++)
      for (int64_t head = 0; head < d.kv_heads; head++)
        for (int64_t q = 0; q < s.sequences[i].count * group; q += some, item++)
          if (item % s.threads == me) {
            const int64_t count = std::min(some, s.sequences[i].count * group - q);
            if (count == 1)
              attended<K, 1>(s.sequences[i], layer.window, l, head, q, count);
            else if (count <= 4)
              attended<K, 4>(s.sequences[i], layer.window, l, head, q, count);
            else
              attended<K, TOGETHER>(s.sequences[i], layer.window, l, head, q, count);
          }
  }

  template <class K, int T>
  void attended(const Sequence& own, int64_t window, int64_t l, int64_t head, int64_t first,
                int64_t count) const {
    const int64_t group = d.heads / d.kv_heads, H = d.head_width;
    Queries<T> queries;
    for (int t = 0; t < T; t++) {
      const int64_t q = first + std::min<int64_t>(t, count - 1), row = own.first + q / group;
      const int64_t at = row * d.heads + head * group + q % group;
      queries.at[t] = s.queries + at * H;
      queries.scale[t] = s.query_scales + at;
      queries.last[t] = own.start + q / group;
    }
    queries.window = window;
    queries.first_block = std::max<int64_t>(queries.last[0] + 1 - window, 0) / BLOCK;
    queries.blocks = queries.last[T - 1] / BLOCK + 1;
    queries.scores = s.scores + me * TILE * d.room;
    queries.room = d.room;
    const uint8_t *key = keys<K>(own.cache, l, head), *value = key + side<K>();
    score<K>(queries, key, value);
    float mixed[T][WIDEST];
    K::mix(queries, value, H, mixed);
    for (int64_t t = 0; t < count; t++) {
      const int64_t q = first + t, row = own.first + q / group;
      const Floats factor = spread(1.0f / sum_of(queries.total[t]));
      const int64_t to = (head * group + q % group) * H / GROUP;
      for (int64_t h = 0; h < H; h += 32)
        s.out.set(row, to + h / GROUP, load_float(mixed[t] + h) * factor,
                  load_float(mixed[t] + h + 16) * factor);
    }
  }

  // Shares of all positions, not divided by their sum yet.
  template <class K, int T>
  void score(Queries<T>& q, const uint8_t* key, const uint8_t* value) const {
    const Floats never = spread(-std::numeric_limits<float>::infinity());
    const int64_t H = d.head_width;
    Floats most[T];
    for (int t = 0; t < T; t++) most[t] = never;
    for (int64_t b = q.first_block; b < q.blocks; b++) {
      Floats sum[T];
      K::score(q, key + b * K::bytes(H), H, sum);
      for (int t = 0; t < T; t++) {
        sum[t] = capped(sum[t], d.score_cap);
        const int64_t seen = q.last[t] + 1 - BLOCK * b, past = seen - q.window;
        if (seen < BLOCK) sum[t] = select(seen <= 0 ? 0 : tail(seen), sum[t], never);
        if (past > 0) sum[t] = select(tail(past), never, sum[t]);
        most[t] = max(most[t], sum[t]);
        store_float(q.scores_of(t, b), sum[t]);
      }
    }
    for (int t = 0; t < T; t++) {
      const Floats top = spread(most_of(most[t]));
      q.total[t] = zeros();
      for (int64_t b = q.first_block; b < q.blocks; b++) {
        const Floats score = load_float(q.scores_of(t, b));
        const Mask there = differ(score, never);
        const Floats share = kept(exp_ps(score - top), there);
        q.total[t] = q.total[t] + share;
        K::keep_shares(q.scores_of(t, 0), b, share, value, H);
      }
    }
  }

  const Decoder& d;
  const Step& s;
  Barrier& barrier;
  const int64_t me;
};

}  // namespace

extern "C" {

void narrows_decoder_step(const Decoder* decoder, const Step* asked) {
  Step step = *asked;
  std::optional<Barrier> barrier;
#pragma omp parallel num_threads(asked->threads)
  {
#pragma omp single
    {
      step.threads = omp_get_num_threads();  // fewer than asked for where the system has no more
      barrier.emplace(step.threads);
    }
    Member(*decoder, step, *barrier, omp_get_thread_num()).run();
  }
}
}
