// What of a loop is a thread's: split statically, so that sums do not depend on timing.
#pragma once
#include <omp.h>

#include <algorithm>

#include "lanes.h"

namespace {

// Half-open.
struct Range {
  int64_t begin, end;
  int64_t count() const { return end - begin; }
};

// Of `count` items that part of so many, cut at multiples of `grain`.
inline Range part_of(int64_t count, int64_t parts, int64_t number, int64_t grain) {
  const int64_t grains = (count + grain - 1) / grain;
  return {std::min(count, grains * number / parts * grain),
          std::min(count, grains * (number + 1) / parts * grain)};
}

// Those that belong to this thread.
inline Range own_range(int64_t count, int64_t grain) {
  return part_of(count, omp_get_num_threads(), omp_get_thread_num(), grain);
}

// f(i, lanes) for this thread's share of `count`.
template <class F>
inline void share16(int64_t count, F f) {
#pragma omp parallel
  {
    const Range range = own_range(count, 1024);
    each16(range.end - range.begin, [&](int64_t i, auto lanes) { f(range.begin + i, lanes); });
  }
}

}  // namespace
