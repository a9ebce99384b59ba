// vector_norm on a GPU.
//
// Roofline, for n elements of s bytes: reads n s, 2 n flops in double. The DARTS supernet's 1,930,618 float32
// weights are 7.7 MB, 2.6 us on an H100 at the 3.0 TB/s that a device-to-device copy was measured at (less
// where they are still in its 50 MB of L2); its 34 TFLOP/s of float64 need 0.1 us. A GPU whose float64 runs
// at 1/64 of float32's rate needs the conversions and products as long as the memory, so they stay the only
// arithmetic in double: one conversion and one FMA an element.
//
// Blocks leave their shares in the workspace and one more block adds these up, in an order that n alone
// decides.
#pragma once

#include <cmath>

#include "cuda/device.cuh"
#include "vector_norm/vector_norm.h"

namespace fastnas::vector_norm {

using cuda::block_sum;
using cuda::kPack;
using cuda::load_pack;
using cuda::Pack;

inline constexpr int kThreads = 256;

// shares[block] = the sum of the squares of the packs that its threads take, in steps of the whole grid.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) squares_kernel(const T* x, double* shares, int64_t n) {
  __shared__ double scratch[kThreads];
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kPack<T>;
  double sum = 0;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPack<T>; i < n; i += step) {
    const Pack<T> values = load_pack<kAligned>(x, i, n);
#pragma unroll
    for (int e = 0; e < kPack<T>; ++e) {
      const double value = values.values[e];
      sum += value * value;
    }
  }
  const double total = block_sum<kThreads>(sum, scratch);
  if (threadIdx.x == 0) shares[blockIdx.x] = total;
}

// One block: the root of the sum of all shares.
__global__ void __launch_bounds__(kThreads) root_kernel(const double* shares, int share_count, double* norm) {
  __shared__ double scratch[kThreads];
  double sum = 0;
  for (int s = threadIdx.x; s < share_count; s += kThreads) sum += shares[s];
  const double total = block_sum<kThreads>(sum, scratch);
  if (threadIdx.x == 0) *norm = std::sqrt(total);
}

}  // namespace fastnas::vector_norm
