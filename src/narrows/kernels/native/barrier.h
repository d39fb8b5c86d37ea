// Where the threads of a team meet.
#pragma once
#include <immintrin.h>

#include <atomic>
#include <cstdint>
#include <thread>

// Threads wait by looking: for a moment without letting others run.
class Barrier {
 public:
  explicit Barrier(int64_t threads) : threads_(threads) {}
  void wait() {
    const int64_t turn = turn_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      return;
    }
    for (int64_t looks = 0; turn_.load(std::memory_order_acquire) == turn; looks++) {
      _mm_pause();
      if (looks > 5000) std::this_thread::yield();
    }
  }

 private:
  const int64_t threads_;
  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<int64_t> turn_{0};
};
