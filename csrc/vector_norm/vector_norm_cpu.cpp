// vector_norm on the CPU: the split into chunks and the reduction over them.
#include <cmath>
#include <vector>

#include "cpu/element.h"
#include "cpu/parallel.h"
#include "vector_norm/vector_norm.h"

namespace fastnas::vector_norm {

using namespace fastnas::cpu;  // NOLINT: the kernel file is written against cpu's names

#define FASTNAS_KERNEL_FILE "vector_norm/vector_norm_cpu_kernel.h"
#include "cpu/for_each_level.h"

namespace {

constexpr int64_t kChunk = 16384;  // fixed, so that the order of the sum is

template <class T>
double squares_chunk(const T* x, int64_t begin, int64_t end) {
  FASTNAS_DISPATCH(squares_chunk<T>, x, begin, end);
}

template <class T>
double norm_of(const T* x, int64_t n) {
  std::vector<double> shares((n + kChunk - 1) / kChunk);
  for_each_chunk(n, kChunk, [&](int64_t chunk, int64_t begin, int64_t end) {
    shares[chunk] = squares_chunk<T>(x, begin, end);
  });
  double total = 0;
  for (const double share : shares) total += share;
  return std::sqrt(total);
}

}  // namespace

void norm_cpu(const Params& p) {
  *p.norm = p.dtype == Dtype::float64 ? norm_of(static_cast<const double*>(p.vector), p.n)
                                      : norm_of(static_cast<const float*>(p.vector), p.n);
}

}  // namespace fastnas::vector_norm
