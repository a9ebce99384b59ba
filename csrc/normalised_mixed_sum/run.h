// The normalised mixed sum as other ops' bindings call it.
#pragma once

#include "normalised_mixed_sum/normalised_mixed_sum.h"
#include "stable.h"

namespace fastnas::normalised_mixed_sum {

// Counts the work (work.h) and runs the kernels of the device of `model`.
void run_forward(const std::vector<Params>& sums, const Tensor& model);
void run_backward(const std::vector<Params>& sums, const Tensor& model);

}  // namespace fastnas::normalised_mixed_sum
