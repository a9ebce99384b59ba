// mixed_sum on the CPU: the split into chunks and the reduction over them; the arithmetic is in the kernel
// file.
#include <algorithm>
#include <vector>

#include "cpu/element.h"
#include "cpu/pages.h"
#include "cpu/parallel.h"
#include "mixed_sum/mixed_sum.h"

namespace fastnas::mixed_sum {

using namespace fastnas::cpu;  // NOLINT: the kernel file is written against cpu's names

// The branches by what is wanted of them: d w_k and d x_k, only the one, or only the other.
struct Wanted {
  std::vector<int64_t> both, dot_only, grad_only;
  bool stream;  // write the d x_k past the caches
};

#define FASTNAS_KERNEL_FILE "mixed_sum/mixed_sum_cpu_kernel.h"
#include "cpu/for_each_level.h"

namespace {

// Elements per unit of work. Fixed, so that the order of every sum is; 64 KiB of float32 is work enough to
// hand to a thread and small enough to share the work out evenly.
constexpr int64_t kChunk = 16384;

// Gradients of this many bytes together are written past the caches: they would not be in them when they are
// read. On an EPYC with 32 MiB of L3, 32 MiB took 2.5 ms on one core instead of 3.8, while 8 MiB, which fit,
// took longer.
constexpr int64_t kStreamBytes = 16 << 20;

template <class T>
void forward_chunk(const ForwardParams& p, const Accumulator<T>* weights, int64_t begin, int64_t end) {
  FASTNAS_DISPATCH(forward_chunk<T>, p, weights, begin, end);
}

template <class T>
void backward_chunk(const BackwardParams& p, const Accumulator<T>* weights, const Wanted& wanted,
                    int64_t begin, int64_t end, double* dots) {
  FASTNAS_DISPATCH(backward_chunk<T>, p, weights, wanted, begin, end, dots);
}

float to_float(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  __builtin_memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

// The K weights in the type that the kernels accumulate in.
template <class A>
std::vector<A> read_weights(const void* weights, Dtype dtype, int64_t count) {
  std::vector<A> values(count);
  for (int64_t k = 0; k < count; ++k) {
    if (dtype == Dtype::bfloat16)
      values[k] = static_cast<A>(to_float(static_cast<const BFloat16*>(weights)[k]));
    else if (dtype == Dtype::float32)
      values[k] = static_cast<A>(static_cast<const float*>(weights)[k]);
    else
      values[k] = static_cast<A>(static_cast<const double*>(weights)[k]);
  }
  return values;
}

// One weight's gradient, rounded once from double to the weights' dtype.
void write_weight_grad(void* grads, Dtype dtype, int64_t k, double value) {
  if (dtype == Dtype::float64)
    static_cast<double*>(grads)[k] = value;
  else if (dtype == Dtype::float32)
    static_cast<float*>(grads)[k] = static_cast<float>(value);
  else
    baseline::store_first(static_cast<BFloat16*>(grads) + k, baseline::Vec<float>{static_cast<float>(value)},
                          1);
}

Wanted sort_wanted(const BackwardParams& p, int64_t element_size) {
  Wanted wanted{};
  bool aligned = true;
  for (int64_t k = 0; k < p.branch_count; ++k) {
    if (p.branch_grads[k]) {
      (p.branches ? wanted.both : wanted.grad_only).push_back(k);
      advise_huge_pages(p.branch_grads[k], p.n * element_size);
      aligned = aligned && is_stream_aligned(p.branch_grads[k]);
    } else if (p.branches) {
      wanted.dot_only.push_back(k);
    }
  }
  const int64_t written =
      static_cast<int64_t>(wanted.both.size() + wanted.grad_only.size()) * p.n * element_size;
  wanted.stream = aligned && written >= kStreamBytes;
  return wanted;
}

template <class T>
void forward(const ForwardParams& p) {
  const auto weights = read_weights<Accumulator<T>>(p.weights, p.weights_dtype, p.branch_count);
  advise_huge_pages(p.out, p.n * sizeof(T));
  for_each_chunk(p.n, kChunk, [&](int64_t, int64_t begin, int64_t end) {
    forward_chunk<T>(p, weights.data(), begin, end);
  });
}

template <class T>
void backward(const BackwardParams& p) {
  const auto weights = read_weights<Accumulator<T>>(p.weights, p.weights_dtype, p.branch_count);
  const Wanted wanted = sort_wanted(p, sizeof(T));
  const int64_t chunks = (p.n + kChunk - 1) / kChunk;
  std::vector<double> dots(chunks * p.branch_count);  // each chunk's share, added up in order below
  for_each_chunk(p.n, kChunk, [&](int64_t chunk, int64_t begin, int64_t end) {
    backward_chunk<T>(p, weights.data(), wanted, begin, end, dots.data() + chunk * p.branch_count);
  });
  if (!p.branches) return;
  for (int64_t k = 0; k < p.branch_count; ++k) {
    double total = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) total += dots[chunk * p.branch_count + k];
    write_weight_grad(p.weights_grad, p.weights_dtype, k, total);
  }
}

}  // namespace

void forward_cpu(const ForwardParams& params) {
  switch (params.dtype) {
    case Dtype::float32:
      return forward<float>(params);
    case Dtype::float64:
      return forward<double>(params);
    case Dtype::bfloat16:
      return forward<BFloat16>(params);
    default:  // the binding lets no other in
      return;
  }
}

void backward_cpu(const BackwardParams& params) {
  switch (params.dtype) {
    case Dtype::float32:
      return backward<float>(params);
    case Dtype::float64:
      return backward<double>(params);
    case Dtype::bfloat16:
      return backward<BFloat16>(params);
    default:
      return;
  }
}

}  // namespace fastnas::mixed_sum
