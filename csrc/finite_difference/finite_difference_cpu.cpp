// perturb_ and difference_ on the CPU: the split into chunks; the arithmetic is in the kernel file.
#include "cpu/element.h"
#include "cpu/parallel.h"
#include "finite_difference/finite_difference.h"

namespace fastnas::finite_difference {

using namespace fastnas::cpu;  // NOLINT: the kernel file is written against cpu's names

#define FASTNAS_KERNEL_FILE "finite_difference/finite_difference_cpu_kernel.h"
#include "cpu/for_each_level.h"

namespace {

constexpr int64_t kChunk = 16384;  // work enough to hand to a thread

template <class T>
void perturb_chunk(const PerturbParams& p, T eps, int64_t begin, int64_t end) {
  FASTNAS_DISPATCH(perturb_chunk<T>, p, eps, begin, end);
}

template <class T>
void difference_chunk(const DifferenceParams& p, T scale, int64_t begin, int64_t end) {
  FASTNAS_DISPATCH(difference_chunk<T>, p, scale, begin, end);
}

template <class T>
void perturb(const PerturbParams& p) {
  const T eps = signed_eps<T>(p);
  for_each_chunk(p.n, kChunk,
                 [&](int64_t, int64_t begin, int64_t end) { perturb_chunk<T>(p, eps, begin, end); });
}

template <class T>
void difference(const DifferenceParams& p) {
  const T scale = half_inverse_eps<T>(p);
  for_each_chunk(p.n, kChunk,
                 [&](int64_t, int64_t begin, int64_t end) { difference_chunk<T>(p, scale, begin, end); });
}

}  // namespace

void perturb_cpu(const PerturbParams& p) {
  p.dtype == Dtype::float64 ? perturb<double>(p) : perturb<float>(p);
}

void difference_cpu(const DifferenceParams& p) {
  p.dtype == Dtype::float64 ? difference<double>(p) : difference<float>(p);
}

}  // namespace fastnas::finite_difference
