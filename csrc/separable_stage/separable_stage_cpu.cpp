#include "separable_stage/separable_stage_cpu.h"

namespace fastnas::separable_stage {

void forward_cpu(const Params& params) {
  if (is_dual(params.dtype)) return forward_dual_cpu(params);
  params.dtype == Dtype::float64 ? forward<double>(params) : forward<float>(params);
}

void backward_cpu(const Params& params) {
  if (is_dual(params.dtype)) return backward_dual_cpu(params);
  params.dtype == Dtype::float64 ? backward<double>(params) : backward<float>(params);
}

}  // namespace fastnas::separable_stage
