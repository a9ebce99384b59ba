// What every kernel's header starts from, without torch: the element types of the arguments.
#pragma once

#include <cstdint>

// Before a function that kernels of the CPU and of a GPU share.
#ifdef __CUDACC__
#define FASTNAS_BOTH __host__ __device__
#else
#define FASTNAS_BOTH
#endif

namespace fastnas {

// dual32 and dual64 are dual numbers of float32 and float64 (cpu/dual.h), on the CPU alone.
enum class Dtype : int { float32, float64, bfloat16, dual32, dual64 };

constexpr bool is_dual(Dtype dtype) { return dtype == Dtype::dual32 || dtype == Dtype::dual64; }

// Bytes of an element.
constexpr int64_t size_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::bfloat16:
      return 2;
    case Dtype::float32:
      return 4;
    case Dtype::dual64:
      return 16;
    default:
      return 8;
  }
}

// Multiply-adds of numbers that one of elements takes.
constexpr int64_t multiply_adds_of(Dtype dtype) { return is_dual(dtype) ? 3 : 1; }

}  // namespace fastnas
