// Memory that a thread works in, kept between calls: pages stay warm.
#pragma once
#include <cstddef>
#include <cstdlib>

namespace {

class Scratch {
 public:
  void* take(size_t bytes) {
    bytes = (bytes + 63) & ~(size_t)63;
    char* at = base_ + used_;
    used_ += bytes;
    return at;
  }
  void reserve(size_t bytes) {
    used_ = 0;
    if (bytes <= size_) return;
    free(base_);
    base_ = (char*)aligned_alloc(64, (bytes + 4095) & ~(size_t)4095);
    size_ = bytes;
  }
  ~Scratch() { free(base_); }

 private:
  char* base_ = nullptr;
  size_t size_ = 0, used_ = 0;
};
thread_local Scratch scratch;

template <class T>
T* take(size_t count) {
  return (T*)scratch.take(count * sizeof(T));
}

}  // namespace
