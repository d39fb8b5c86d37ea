// Memory that is taken and given back in the same sizes again and again, as a training step does.
//
// One region of addresses, cut into blocks that follow each other. The smallest hole that fits is
// taken, and what is free side by side is one hole. Pages that were used once stay until it rests.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <mutex>
#include <set>
#include <utility>

class Pool {
 public:
  // Addresses for twice what the machine has; false where the system gives none.
  bool reserve() {
    reserved_ = 2 * size_t(sysconf(_SC_PHYS_PAGES)) * size_t(sysconf(_SC_PAGESIZE));
    void* begin = mmap(nullptr, reserved_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1, 0);
    if (begin == MAP_FAILED) return false;
    begin_ = top_ = static_cast<char*>(begin);
    usable_ = begin_;
    return true;
  }

  // `bytes`, at an address of a cache line; null where the system has no more.
  void* take(size_t bytes) {
    const size_t size = APART + (bytes + LINE - 1) / LINE * LINE;
    const std::lock_guard<std::mutex> alone(mutex_);
    const auto hole = holes_.lower_bound({size, nullptr});
    Block* block = hole != holes_.end() ? hole->second : grown(size);
    if (block == nullptr) return nullptr;
    holes_.erase({block->size, block});
    block->free = false;
    if (block->size >= size + APART + LINE) part(block, size);
    return block + 1;
  }

  bool has(const void* data) const { return data >= begin_ && data < begin_ + reserved_; }

  void give(void* data) {
    const std::lock_guard<std::mutex> alone(mutex_);
    Block* block = static_cast<Block*>(data) - 1;
    if (Block* next = after(block); next != nullptr && next->free) join(block, next);
    if (Block* last = before(block); last != nullptr && last->free) {
      join(last, block);
      block = last;
    }
    block->free = true;
    holes_.insert({block->size, block});
  }

  // The system has the pages of all holes back.
  void rest() {
    const std::lock_guard<std::mutex> alone(mutex_);
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    for (const auto& hole : holes_) {
      const size_t first = (reinterpret_cast<size_t>(hole.second + 1) + page - 1) / page * page;
      const size_t last = reinterpret_cast<size_t>(end(hole.second)) / page * page;
      if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
    }
  }

  // A process that is forked finds the pool at rest.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  static constexpr size_t LINE = 64, STEP = size_t(64) << 20;
  // Between the bytes of two blocks: buffers of whole pages that follow each other begin at other
  // places of a page, and a store to one is not taken for a load of the next.
  static constexpr size_t APART = 13 * LINE;

  // What stands ahead of a block's bytes.
  struct alignas(LINE) Block {
    size_t size, before;  // with this; of the block before it, 0 of the first
    bool free;
  };

  char* end(Block* block) const { return reinterpret_cast<char*>(block) + block->size; }
  Block* after(Block* block) const {
    return end(block) == top_ ? nullptr : reinterpret_cast<Block*>(end(block));
  }
  Block* before(Block* block) const {
    if (block->before == 0) return nullptr;
    return reinterpret_cast<Block*>(reinterpret_cast<char*>(block) - block->before);
  }

  // A hole of that size at the end of all, of which a hole that is there already is the begin.
  Block* grown(size_t size) {
    Block* block = last_ != nullptr && last_->free ? last_ : reinterpret_cast<Block*>(top_);
    char* top = reinterpret_cast<char*>(block) + size;
    while (top > usable_) {
      if (usable_ + STEP > begin_ + reserved_) return nullptr;
      if (mprotect(usable_, STEP, PROT_READ | PROT_WRITE) != 0) return nullptr;
      usable_ += STEP;
    }
    if (block == last_) {
      holes_.erase({block->size, block});
      block->size = size;
    } else {
      *block = {size, last_ == nullptr ? 0 : last_->size, true};
      last_ = block;
    }
    top_ = top;
    holes_.insert({size, block});
    return block;
  }

  void part(Block* block, size_t size) {
    Block* rest = reinterpret_cast<Block*>(reinterpret_cast<char*>(block) + size);
    *rest = {block->size - size, size, true};
    if (Block* next = after(block)) next->before = rest->size;
    if (block == last_) last_ = rest;
    block->size = size;
    holes_.insert({rest->size, rest});
  }

  // Two that follow each other become the first; neither is a hole any more.
  void join(Block* first, Block* second) {
    for (Block* each : {first, second})
      if (each->free) holes_.erase({each->size, each});
    first->size += second->size;
    if (second == last_) last_ = first;
    if (Block* next = after(first)) next->before = first->size;
  }

  std::mutex mutex_;
  std::set<std::pair<size_t, Block*>> holes_;
  char *begin_ = nullptr, *top_ = nullptr, *usable_ = nullptr;
  size_t reserved_ = 0;
  Block* last_ = nullptr;
};
