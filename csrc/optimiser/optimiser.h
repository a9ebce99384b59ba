// The steps of a search's two optimisers on flat vectors.
#pragma once

#include <cmath>
#include <cstdint>

#include "dtype.h"

#if defined(FASTNAS_WITH_CUDA) || defined(__CUDACC__)
#include <cuda_runtime_api.h>
#endif

namespace fastnas::optimiser {

// d = min(1, clip / (|grad| + 1e-6)) grad + weight_decay w;  buffer <- momentum buffer + d;
// w <- w - learning_rate buffer (without momentum: d). Where |grad| is not finite, nothing is written but
// norm.
struct SgdParams {
  void* w;
  const void* grad;
  void* buffer;  // null without momentum
  double* norm;  // receives |grad|; one number on the vectors' device
  double learning_rate;
  const double* rate;  // not null: the learning rate is there, one number on the vectors' device
  double momentum;
  double weight_decay;
  double clip;
  int64_t n;
  Dtype dtype;  // float32 or float64
};

// A step's constants, in the type that it is computed in.
template <class T>
struct SgdFactors {
  T clip, learning_rate, momentum, weight_decay;

  FASTNAS_BOTH bool moves() const { return clip == clip; }
};

// The norm is |grad|. Where it is not finite, the clipping factor is NaN.
template <class T>
FASTNAS_BOTH SgdFactors<T> sgd_factors(const SgdParams& p) {
  const double factor = p.clip / (*p.norm + 1e-6) + 0 * *p.norm;
  return {static_cast<T>(factor > 1 ? 1 : factor), static_cast<T>(p.rate ? *p.rate : p.learning_rate),
          static_cast<T>(p.momentum), static_cast<T>(p.weight_decay)};
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

// What a step of Adam does to every element alike.
struct AdamFactors {
  double rate;             // learning_rate / (1 - beta1^step)
  double root_correction;  // sqrt(1 - beta2^step)
};

// Counts the step.
FASTNAS_BOTH inline AdamFactors adam_begin(const AdamParams& p) {
  const double step = *p.step += 1;
  return {p.learning_rate / (1 - std::pow(p.beta1, step)), std::sqrt(1 - std::pow(p.beta2, step))};
}

// Element i, in double: there are a few hundred of them.
template <class T>
FASTNAS_BOTH void adam_element(const AdamParams& p, const AdamFactors& factors, int64_t i) {
  T* alpha = static_cast<T*>(p.alpha) + i;
  T* exp_avg = static_cast<T*>(p.exp_avg) + i;
  T* exp_avg_sq = static_cast<T*>(p.exp_avg_sq) + i;
  const double decay = p.weight_decay == 0 ? 0 : p.weight_decay * *alpha;
  const double g = static_cast<const T*>(p.grad)[i] + decay;
  const double mean = *exp_avg + (1 - p.beta1) * (g - *exp_avg);
  const double square = p.beta2 * *exp_avg_sq + (1 - p.beta2) * g * g;
  *alpha =
      static_cast<T>(*alpha - factors.rate * mean / (std::sqrt(square) / factors.root_correction + p.eps));
  *exp_avg = static_cast<T>(mean);
  *exp_avg_sq = static_cast<T>(square);
}

void sgd_step_cpu(const SgdParams& params);
void adam_step_cpu(const AdamParams& params);

}  // namespace fastnas::optimiser

#if defined(FASTNAS_WITH_CUDA) || defined(__CUDACC__)
extern "C" {
// The workspace: that of vector_norm.
cudaError_t fastnas_sgd_step(const fastnas::optimiser::SgdParams* params, void* workspace,
                             cudaStream_t stream);
// The workspace: AdamFactors.
cudaError_t fastnas_adam_step(const fastnas::optimiser::AdamParams* params, void* workspace,
                              cudaStream_t stream);
}
#endif
