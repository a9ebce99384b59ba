// sgd_step_ and adam_step_ on the CPU; SGD's arithmetic is in the kernel file.
#include "cpu/element.h"
#include "cpu/parallel.h"
#include "optimiser/optimiser.h"
#include "vector_norm/vector_norm.h"

namespace fastnas::optimiser {

using namespace fastnas::cpu;  // NOLINT: the kernel file is written against cpu's names

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
  const SgdFactors<T> factors = sgd_factors<T>(p);
  if (!factors.moves()) return;
  for_each_chunk(p.n, kChunk,
                 [&](int64_t, int64_t begin, int64_t end) { sgd_chunk<T>(p, factors, begin, end); });
}

// A few hundred numbers: plain code at no CPU level.
template <class T>
void adam_step(const AdamParams& p) {
  const AdamFactors factors = adam_begin(p);
  for_each_chunk(p.n, kChunk, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) adam_element<T>(p, factors, i);
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
