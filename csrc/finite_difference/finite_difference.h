// The two elementwise halves of a central difference along u, with eps = radius / |u|:
//   perturb     w     <- saved + sign eps u
//   difference  ahead <- (ahead - behind) / (2 eps)
// The norm is a number on the vectors' device, so that eps is computed there.
#pragma once

#include <cmath>
#include <cstdint>

#include "dtype.h"

#if defined(FASTNAS_WITH_CUDA) || defined(__CUDACC__)
#include <cuda_runtime_api.h>
#endif

namespace fastnas::finite_difference {

struct PerturbParams {
  void* w;
  const void* saved;
  const void* u;
  const double* norm;  // |u|
  double signed_radius;
  int64_t n;
  Dtype dtype;  // float32 or float64
};

struct DifferenceParams {
  void* ahead;
  const void* behind;
  const double* norm;
  double radius;
  int64_t n;
  Dtype dtype;
};

// +eps or -eps, and 0 where it is not finite: |u| is 0, so small that eps overflows T, or NaN.
template <class T>
FASTNAS_BOTH T signed_eps(const PerturbParams& p) {
  const T eps = static_cast<T>(p.signed_radius / *p.norm);
  return std::isfinite(eps) ? eps : T(0);
}

// 1/(2 eps), written so that it is 0 for |u| = 0 and NaN for |u| = NaN.
template <class T>
FASTNAS_BOTH T half_inverse_eps(const DifferenceParams& p) {
  return static_cast<T>(*p.norm / (2 * p.radius));
}

void perturb_cpu(const PerturbParams& params);
void difference_cpu(const DifferenceParams& params);

}  // namespace fastnas::finite_difference

#if defined(FASTNAS_WITH_CUDA) || defined(__CUDACC__)
extern "C" {
cudaError_t fastnas_perturb(const fastnas::finite_difference::PerturbParams* params, void* workspace,
                            cudaStream_t stream);
cudaError_t fastnas_difference(const fastnas::finite_difference::DifferenceParams* params, void* workspace,
                               cudaStream_t stream);
}
#endif
