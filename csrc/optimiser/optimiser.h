// The steps of a search's two optimisers on flat vectors.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fastnas::optimiser {

// d = min(1, clip / (|grad| + 1e-6)) grad + weight_decay w;  buffer <- momentum buffer + d;
// w <- w - learning_rate buffer (without momentum: d).
struct SgdParams {
  void* w;
  const void* grad;
  void* buffer;  // null without momentum
  double* norm;  // receives |grad|; one number on the vectors' device
  double learning_rate;
  double momentum;
  double weight_decay;
  double clip;
  int64_t n;
  Dtype dtype;  // float32 or float64
};

// The factor of clipping: NaN for a NaN norm, as torch.nn.utils.clip_grad_norm_ has it.
inline double clip_factor(double norm, double clip) {
  const double factor = clip / (norm + 1e-6);
  return factor > 1 ? 1 : factor;
}

// Adam (Kingma and Ba 2015, algorithm 1) with weight decay added to the gradient.
struct AdamParams {
  void* alpha;
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  float* step;  // steps taken so far, one number on the vectors' device
  double learning_rate;
  double beta1;
  double beta2;
  double eps;
  double weight_decay;
  int64_t n;
  Dtype dtype;
};

void sgd_step_cpu(const SgdParams& params);
void adam_step_cpu(const AdamParams& params);

}  // namespace fastnas::optimiser
