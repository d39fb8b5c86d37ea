// Sixteen lanes of fp32 or int32: the one vocabulary that the kernels are written in. Which
// instructions compute them is the compiler's flags' to say.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

using bf16 = uint16_t;

// For what a loop in registers calls: outside of it all that is in them would pass through memory.
#define INLINE __attribute__((always_inline)) static inline

// Sixteen lanes, all of them: the common case, without a mask.
struct All {};

#ifdef __AVX512F__
#include "lanes512.h"
#else
#include "lanes256.h"
#endif

static inline float to_float(bf16 x) {
  uint32_t bits = (uint32_t)x << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

static inline Mask tail(int64_t left) {
  return left >= 16 ? (Mask)0xffff : (Mask)((1u << left) - 1);
}

// f(i, lanes) for every sixteen of `count`; the last call may have a mask.
template <class F>
static inline void each16(int64_t count, F f) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) f(i, All{});
  if (i < count) f(i, tail(count - i));
}

// The four bytes that lie there, in every lane.
static inline Ints spread_bytes(const void* at) {
  int32_t four;
  memcpy(&four, at, 4);
  return spread_int(four);
}

// Interleave two rows of fp32 into bf16 pairs (a0 b0 a1 b1 …): 16 columns, one 64-byte store.
static inline Ints pair_rows(Floats a, Floats b) {
  return either(narrowed(a), up<16>(narrowed(b)));
}
