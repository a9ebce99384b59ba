// Shared pooling as other ops' bindings call it.
#pragma once

#include "shared_pooling/shared_pooling.h"
#include "stable.h"

namespace fastnas::shared_pooling {

// Does nothing where there are no elements, counts the work (work.h) and runs the kernels of the device of
// `model`.
void run_forward(const Params& params, const Tensor& model);
void run_backward(const Params& params, const Tensor& model);

}  // namespace fastnas::shared_pooling
