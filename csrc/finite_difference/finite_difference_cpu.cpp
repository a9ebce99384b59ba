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

// Weights of this many bytes are written past the caches, which saves reading them first: on an EPYC, 1.9 M
// float32 on one core took 0.8 of torch.addcmul's time instead of 1.0. They are read over a whole forward
// pass, whose activations would have taken their place in the caches.
constexpr int64_t kStreamBytes = 4 << 20;

template <class T>
void perturb_chunk(const PerturbParams& p, T eps, bool stream, int64_t begin, int64_t end) {
  FASTNAS_DISPATCH(perturb_chunk<T>, p, eps, stream, begin, end);
}

template <class T>
void difference_chunk(const DifferenceParams& p, T scale, int64_t begin, int64_t end) {
  FASTNAS_DISPATCH(difference_chunk<T>, p, scale, begin, end);
}

template <class T>
void perturb(const PerturbParams& p) {
  const T eps = signed_eps<T>(p);
  const bool stream = is_stream_aligned(p.w) && p.n * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
  for_each_chunk(p.n, kChunk,
                 [&](int64_t, int64_t begin, int64_t end) { perturb_chunk<T>(p, eps, stream, begin, end); });
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
