// The element types of the kernels' arguments, without torch.
#pragma once

#include <cstdint>

namespace fastnas {

enum class Dtype : int { float32, float64, bfloat16 };

// Bytes of an element.
constexpr int64_t size_of(Dtype dtype) {
  return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2;
}

}  // namespace fastnas
