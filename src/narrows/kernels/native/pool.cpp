// torch's CPU tensors in a pool. glibc's posix_memalign looks for more than it hands out, so that
// the hole of a buffer among living ones is too small for the same buffer again: a training step
// takes up to twice what it has in use.
#include "pool.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <pthread.h>

namespace {

// Never taken apart: tensors outlive whatever ends a process.
Pool& pool = *new Pool;

constexpr size_t SMALL = size_t(64) << 10;  // bytes that the heap serves as well

struct Pooled final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes < SMALL ? nullptr : pool.take(bytes);
    if (data == nullptr) data = c10::alloc_cpu(bytes);
    // As torch's own allocator does: torch.profiler sees no memory otherwise.
    c10::profiledCPUMemoryReporter().New(data, bytes);
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
  static void release(void* data) {
    if (data == nullptr) return;
    c10::profiledCPUMemoryReporter().Delete(data);
    pool.has(data) ? pool.give(data) : c10::free_cpu(data);
  }
};

}  // namespace

// From here on; false where the system gives no addresses.
extern "C" bool narrows_pool() {
  static const bool there = [] {
    if (!pool.reserve()) return false;
    pthread_atfork([] { pool.lock(); }, [] { pool.unlock(); }, [] { pool.unlock(); });
    c10::SetCPUAllocator(new Pooled);
    return true;
  }();
  return there;
}

extern "C" void narrows_pool_rest() { pool.rest(); }
