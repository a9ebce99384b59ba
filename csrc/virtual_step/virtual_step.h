// The weight step that second-order DARTS differentiates through (Liu et al. 2019, eq. 7), of w alone:
//   w <- w - learning_rate (momentum buffer + grad + weight_decay w)
// On a GPU this is Triton's (kernels/virtual_step.py).
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fastnas::virtual_step {

struct Params {
  void* w;
  const void* grad;
  const void* buffer;  // null without momentum
  double learning_rate;
  const double* rate;  // not null: the learning rate is there
  double momentum;
  double weight_decay;
  int64_t n;
  Dtype dtype;  // float32 or float64
};

void step_cpu(const Params& params);

}  // namespace fastnas::virtual_step
