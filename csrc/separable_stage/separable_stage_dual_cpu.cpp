#include "separable_stage/separable_stage_cpu.h"

namespace fastnas::separable_stage {

void forward_dual_cpu(const Params& params) {
  params.dtype == Dtype::dual64 ? forward<Dual<double>>(params) : forward<Dual<float>>(params);
}

void backward_dual_cpu(const Params& params) {
  params.dtype == Dtype::dual64 ? backward<Dual<double>>(params) : backward<Dual<float>>(params);
}

}  // namespace fastnas::separable_stage
