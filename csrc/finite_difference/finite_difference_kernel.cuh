// perturb_ and difference_ on a GPU.
//
// Roofline, for n elements of s bytes: each reads 2 n s and writes n s, with 2 n flops. For the DARTS
// supernet's 1,930,618 float32 weights 23.2 MB, 7.7 us on an H100 at the 3.0 TB/s that a device-to-device
// copy was measured at: bound by memory. One pack of 16 bytes a thread and array.
#pragma once

#include "cuda/device.cuh"
#include "finite_difference/finite_difference.h"

namespace fastnas::finite_difference {

using cuda::kPack;
using cuda::load_pack;
using cuda::Pack;
using cuda::store_pack;

inline constexpr int kThreads = 256;

// The first element of this thread's pack.
template <class T>
__device__ __forceinline__ int64_t first_element() {
  return (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPack<T>;
}

// w and saved, or w and u, may be one array: a thread reads its elements before it writes them. One thread of
// a block divides by the norm, in double, while the others wait for their loads.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) perturb_kernel(PerturbParams p) {
  __shared__ T shared_eps;
  const int64_t i = first_element<T>();
  Pack<T> moved = load_pack<kAligned>(static_cast<const T*>(p.saved), i, p.n);
  const Pack<T> u = load_pack<kAligned>(static_cast<const T*>(p.u), i, p.n);
  if (threadIdx.x == 0) shared_eps = signed_eps<T>(p);
  __syncthreads();
  const T eps = shared_eps;
#pragma unroll
  for (int e = 0; e < kPack<T>; ++e) moved.values[e] += eps * u.values[e];
  store_pack<kAligned>(static_cast<T*>(p.w), i, p.n, moved);
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) difference_kernel(DifferenceParams p) {
  __shared__ T shared_scale;
  const int64_t i = first_element<T>();
  Pack<T> ahead = load_pack<kAligned>(static_cast<const T*>(p.ahead), i, p.n);
  const Pack<T> behind = load_pack<kAligned>(static_cast<const T*>(p.behind), i, p.n);
  if (threadIdx.x == 0) shared_scale = half_inverse_eps<T>(p);
  __syncthreads();
  const T scale = shared_scale;
#pragma unroll
  for (int e = 0; e < kPack<T>; ++e) ahead.values[e] = (ahead.values[e] - behind.values[e]) * scale;
  store_pack<kAligned>(static_cast<T*>(p.ahead), i, p.n, ahead);
}

}  // namespace fastnas::finite_difference
