// Element types of the CPU kernels and what each accumulates in. Include it before cpu/for_each_level.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "cpu/capability.h"
#include "cpu/dual.h"
#include "dtype.h"

#if FASTNAS_X86
#include <immintrin.h>
#endif

#define FASTNAS_INLINE inline __attribute__((always_inline))

namespace fastnas::cpu {

// The upper half of a float32.
struct BFloat16 {
  uint16_t bits;
};

template <class T>
struct Type {
  using type = T;
};

// Calls body(Type<T>{}) with the type of an op on images.
template <class Body>
void with_type(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::float64:
      return body(Type<double>{});
    case Dtype::dual32:
      return body(Type<Dual<float>>{});
    case Dtype::dual64:
      return body(Type<Dual<double>>{});
    default:
      return body(Type<float>{});
  }
}

template <class T>
struct AccumulatorOf {
  using type = T;
};
template <>
struct AccumulatorOf<BFloat16> {
  using type = float;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

// Whether streaming stores of whole vectors, counted from here, are aligned at every level.
inline bool is_stream_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 64 == 0; }

// Makes this thread's streaming stores visible before whatever it stores next.
inline void stream_fence() {
#if FASTNAS_X86
  _mm_sfence();
#endif
}

}  // namespace fastnas::cpu
