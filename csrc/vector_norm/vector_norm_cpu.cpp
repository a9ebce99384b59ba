// vector_norm on the CPU: the split into chunks and the reduction over them.
#include <cmath>

#include "cpu/element.h"
#include "cpu/parallel.h"
#include "vector_norm/vector_norm.h"

namespace fastnas::vector_norm {

using namespace fastnas::cpu;  // NOLINT: the kernel file is written against cpu's names

#define FASTNAS_KERNEL_FILE "vector_norm/vector_norm_cpu_kernel.h"
#include "cpu/for_each_level.h"

template <class T>
double squares(const T* x, int64_t begin, int64_t end) {
  FASTNAS_DISPATCH(squares_chunk<T>, x, begin, end);
}
template double squares(const float*, int64_t, int64_t);
template double squares(const double*, int64_t, int64_t);

double norm_from(const std::vector<double>& chunks) {
  double total = 0;
  for (const double chunk : chunks) total += chunk;
  return std::sqrt(total);
}

namespace {

template <class T>
double norm_of(const T* x, int64_t n) {
  std::vector<double> chunks((n + kChunk - 1) / kChunk);
  for_each_chunk(n, kChunk, [&](int64_t chunk, int64_t begin, int64_t end) {
    chunks[chunk] = squares<T>(x, begin, end);
  });
  return norm_from(chunks);
}

}  // namespace

void norm_cpu(const Params& p) {
  *p.norm = p.dtype == Dtype::float64 ? norm_of(static_cast<const double*>(p.vector), p.n)
                                      : norm_of(static_cast<const float*>(p.vector), p.n);
}

}  // namespace fastnas::vector_norm
