// highway_sum on the CPU: the split into chunks of rows and the reduction over them; the arithmetic is in the
// kernel file.
#include <algorithm>
#include <vector>

#include "cpu/element.h"
#include "cpu/parallel.h"
#include "highway_sum/highway_sum.h"

namespace fastnas::highway_sum {

using namespace fastnas::cpu;  // NOLINT: the kernel file is written against cpu's names

#define FASTNAS_KERNEL_FILE "highway_sum/highway_sum_cpu_kernel.h"
#include "cpu/for_each_level.h"

namespace {

// Rows per unit of work. Fixed, so that the order of every sum is.
constexpr int64_t kRows = 8;

template <class T>
void forward_rows(const Params& p, int64_t begin, int64_t end) {
  FASTNAS_DISPATCH(forward_rows<T>, p, begin, end);
}

template <class T>
void backward_rows(const Params& p, int64_t begin, int64_t end, double* sums) {
  FASTNAS_DISPATCH(backward_rows<T>, p, begin, end, sums);
}

template <class T>
void forward(const Params& p) {
  for_each_chunk(p.rows, kRows, [&](int64_t, int64_t begin, int64_t end) { forward_rows<T>(p, begin, end); });
}

template <class T>
void backward(const Params& p) {
  const int64_t count = p.sources * kActivations, chunks = (p.rows + kRows - 1) / kRows;
  std::vector<double> sums(chunks * count);  // each chunk's share, added up in order below
  for_each_chunk(p.rows, kRows, [&](int64_t chunk, int64_t begin, int64_t end) {
    backward_rows<T>(p, begin, end, sums.data() + chunk * count);
  });
  for (int64_t i = 0; i < count; ++i) {
    double total = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) total += sums[chunk * count + i];
    static_cast<T*>(p.mixing_grad)[i] = static_cast<T>(total);
  }
}

}  // namespace

void forward_cpu(const Params& params) {
  params.dtype == Dtype::float64 ? forward<double>(params) : forward<float>(params);
}

void backward_cpu(const Params& params) {
  params.dtype == Dtype::float64 ? backward<double>(params) : backward<float>(params);
}

}  // namespace fastnas::highway_sum
