// sgd_step_ and adam_step_ on the CPU; SGD's arithmetic is in the kernel file.
#include <cmath>

#include "cpu/element.h"
#include "cpu/parallel.h"
#include "optimiser/optimiser.h"
#include "vector_norm/vector_norm.h"

namespace fastnas::optimiser {

using namespace fastnas::cpu;  // NOLINT: the kernel file is written against cpu's names

// A step's constants, in the type that the kernel computes in.
template <class T>
struct SgdFactors {
  T clip, learning_rate, momentum, weight_decay;
};

#define FASTNAS_KERNEL_FILE "optimiser/optimiser_cpu_kernel.h"
#include "cpu/for_each_level.h"

namespace {

constexpr int64_t kChunk = 16384;  // work enough to hand to a thread

template <class T>
void sgd_chunk(const SgdParams& p, const SgdFactors<T>& factors, int64_t begin, int64_t end) {
  FASTNAS_DISPATCH(sgd_chunk<T>, p, factors, begin, end);
}

template <class T>
void sgd_step(const SgdParams& p) {
  const SgdFactors<T> factors{static_cast<T>(clip_factor(*p.norm, p.clip)), static_cast<T>(p.learning_rate),
                              static_cast<T>(p.momentum), static_cast<T>(p.weight_decay)};
  for_each_chunk(p.n, kChunk,
                 [&](int64_t, int64_t begin, int64_t end) { sgd_chunk<T>(p, factors, begin, end); });
}

// A few hundred numbers: plain code, in double, at no CPU level.
template <class T>
void adam_step(const AdamParams& p) {
  const double step = *p.step += 1;
  const double rate = p.learning_rate / (1 - std::pow(p.beta1, step));
  const double root_correction = std::sqrt(1 - std::pow(p.beta2, step));
  T* alpha = static_cast<T*>(p.alpha);
  const T* grad = static_cast<const T*>(p.grad);
  T* exp_avg = static_cast<T*>(p.exp_avg);
  T* exp_avg_sq = static_cast<T*>(p.exp_avg_sq);
  for_each_chunk(p.n, kChunk, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const double decay = p.weight_decay == 0 ? 0 : p.weight_decay * alpha[i];
      const double g = grad[i] + decay;
      const double mean = exp_avg[i] + (1 - p.beta1) * (g - exp_avg[i]);
      const double square = p.beta2 * exp_avg_sq[i] + (1 - p.beta2) * g * g;
      alpha[i] = static_cast<T>(alpha[i] - rate * mean / (std::sqrt(square) / root_correction + p.eps));
      exp_avg[i] = static_cast<T>(mean);
      exp_avg_sq[i] = static_cast<T>(square);
    }
  });
}

}  // namespace

void sgd_step_cpu(const SgdParams& p) {
  vector_norm::norm_cpu({p.grad, p.norm, p.n, p.dtype});
  p.dtype == Dtype::float64 ? sgd_step<double>(p) : sgd_step<float>(p);
}

void adam_step_cpu(const AdamParams& p) {
  p.dtype == Dtype::float64 ? adam_step<double>(p) : adam_step<float>(p);
}

}  // namespace fastnas::optimiser
