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

enum class Dtype : int { float32, float64, bfloat16 };

// Bytes of an element.
constexpr int64_t size_of(Dtype dtype) {
  return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2;
}

}  // namespace fastnas
