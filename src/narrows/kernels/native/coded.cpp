// Values kept as one of 256 shares of the largest in their block of 256.
#include <immintrin.h>

#include <algorithm>
#include <cfloat>
#include <cstdint>

#include "lanes.h"

namespace {

constexpr int64_t BLOCK = 256;

// How many of the 255 ascending bounds are below each of sixteen shares: the first four of eight
// halvings among every sixteenth of them, which a register holds.
struct Bounds {
  explicit Bounds(const float* bounds) : all(bounds) {
    float each[16] = {};
    for (int i = 0; i < 15; i++) each[i] = bounds[16 * i + 15];
    sixteenth = load_float(each);
  }

  Ints below(Floats share) const {
    Ints count = no_ints();
    for (int step = 8; step; step >>= 1) {
      const Ints probe = plus(count, spread_int(step - 1));
      count = beyond(count, pick(sixteenth, probe), share, step);
    }
    count = up<4>(count);
    for (int step = 8; step; step >>= 1) {
      const Ints probe = plus(count, spread_int(step - 1));
      count = beyond(count, pick(all, probe), share, step);
    }
    return count;
  }

 private:
  static Ints beyond(Ints count, Floats bound, Floats share, int step) {
    const Mask above = less(bound, share);
    return select(above, plus(count, spread_int(step)), count);
  }

  const float* all;
  Floats sixteenth;
};

}  // namespace

extern "C" {

// out = levels[code] · scale of the code's block.
void narrows_decode(const uint8_t* codes, const float* scales, const float* levels, float* out,
                    int64_t count) {
#pragma omp parallel for schedule(static)
  for (int64_t start = 0; start < count; start += BLOCK) {
    const Floats scale = spread(scales[start / BLOCK]);
    each16(std::min(BLOCK, count - start), [&](int64_t i, auto lanes) {
      const uint8_t* from = codes + start + i;
      const Ints code = load_uint8(from, lanes);
      const Floats level = pick(levels, code);
      store_float(out + start + i, level * scale, lanes);
    });
  }
}

// The code whose level is nearest, between `bounds` half way; `scales` receives each block's
// largest.
void narrows_encode(const float* values, const float* bounds, uint8_t* codes, float* scales,
                    int64_t count) {
  const Bounds known(bounds);
#pragma omp parallel for schedule(static)
  for (int64_t start = 0; start < count; start += BLOCK) {
    const int64_t size = std::min(BLOCK, count - start);
    Floats most = zeros();
    each16(size, [&](int64_t i, auto lanes) {
      most = max(most, abs(load_float(values + start + i, lanes)));
    });
    const float scale = most_of(most);
    scales[start / BLOCK] = scale;
    const Floats divisor = spread(std::max(scale, FLT_MIN));
    each16(size, [&](int64_t i, auto lanes) {
      const Floats share = load_float(values + start + i, lanes) / divisor;
      store_int8(codes + start + i, known.below(share), lanes);
    });
  }
}
}
