// The op on the device of its tensors, for bindings.
#pragma once

#include "separable_stage/separable_stage.h"
#include "stable.h"

namespace fastnas::separable_stage {

// Does nothing where there are no pixels, counts the work (work.h) and runs the kernels of the device of
// `model`.
void run_forward(const Params& params, const Tensor& model);
void run_backward(const Params& params, const Tensor& model);

}  // namespace fastnas::separable_stage
