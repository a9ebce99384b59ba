// |x|, the Euclidean norm of a flat vector, accumulated in double.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fastnas::vector_norm {

struct Params {
  const void* vector;
  double* norm;  // one number, on the vector's device
  int64_t n;
  Dtype dtype;  // float32 or float64
};

void norm_cpu(const Params& params);

}  // namespace fastnas::vector_norm
