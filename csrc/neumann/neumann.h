// One step of a Neumann series (Zhang et al. 2021, eq. 9), with H v as a central difference along v whose eps
// is radius / |v|:
//   v <- v - gamma (ahead - behind) / (2 eps);   series <- series + v;   and the norm of the new v.
// On a GPU this is Triton's (kernels/neumann.py).
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fastnas::neumann {

struct Params {
  void* v;
  void* series;
  const void* ahead;
  const void* behind;
  const double* norm;  // |v| before
  double* new_norm;    // receives |v| after
  double radius;
  double gamma;
  const double* rate;  // not null: gamma is there
  int64_t n;
  Dtype dtype;  // float32 or float64
};

// gamma / (2 eps): 0 for |v| = 0, NaN for |v| = NaN.
template <class T>
T factor(const Params& p) {
  return static_cast<T>((p.rate ? *p.rate : p.gamma) * (*p.norm / (2 * p.radius)));
}

void step_cpu(const Params& params);

}  // namespace fastnas::neumann
