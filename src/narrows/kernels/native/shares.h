// What of a loop is a thread's: split statically, so that sums do not depend on timing.
#pragma once
#include <omp.h>

#include <algorithm>

#include "lanes.h"

namespace {

// Half-open range of `count` items that belongs to this thread.
struct Range {
  int64_t begin, end;
};
inline Range own_range(int64_t count, int64_t grain) {
  const int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
  const int64_t grains = (count + grain - 1) / grain;
  return {std::min(count, grains * me / threads * grain),
          std::min(count, grains * (me + 1) / threads * grain)};
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
