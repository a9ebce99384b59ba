// sgd_step_ and adam_step_ on a GPU.
//
// Roofline, for n elements of s bytes: SGD with momentum reads 3 n s and writes 2 n s, after vector_norm's
// n s: 6 n s, about 8 n flops. For the DARTS supernet's 1,930,618 float32 weights 46.3 MB, 15.4 us on an H100
// at the 3.0 TB/s that a device-to-device copy was measured at: bound by memory. One pack of 16 bytes a
// thread and array. Adam's few hundred numbers are bound by its two launches.
#pragma once

#include "cuda/device.cuh"
#include "optimiser/optimiser.h"

namespace fastnas::optimiser {

using cuda::kPack;
using cuda::load_pack;
using cuda::Pack;
using cuda::store_pack;

inline constexpr int kThreads = 256;

// One thread of a block computes the factors while the others wait for their loads. What a factor of 0
// switches off is not computed: 0 times an infinite weight would be NaN.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) sgd_kernel(SgdParams p) {
  __shared__ SgdFactors<T> shared_factors;
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPack<T>;
  Pack<T> w = load_pack<kAligned>(static_cast<const T*>(p.w), i, p.n);
  const Pack<T> grad = load_pack<kAligned>(static_cast<const T*>(p.grad), i, p.n);
  Pack<T> buffer{};
  if (p.buffer) buffer = load_pack<kAligned>(static_cast<const T*>(p.buffer), i, p.n);
  if (threadIdx.x == 0) shared_factors = sgd_factors<T>(p);
  __syncthreads();
  const SgdFactors<T> factors = shared_factors;
  if (!factors.moves()) return;
#pragma unroll
  for (int e = 0; e < kPack<T>; ++e) {
    T step = grad.values[e] * factors.clip;
    if (factors.weight_decay != 0) step += factors.weight_decay * w.values[e];
    if (p.buffer) step = buffer.values[e] = factors.momentum * buffer.values[e] + step;
    w.values[e] -= factors.learning_rate * step;
  }
  store_pack<kAligned>(static_cast<T*>(p.w), i, p.n, w);
  if (p.buffer) store_pack<kAligned>(static_cast<T*>(p.buffer), i, p.n, buffer);
}

// One thread: counts the step, and its two powers, for all the others.
__global__ void adam_begin_kernel(AdamParams p, AdamFactors* factors) { *factors = adam_begin(p); }

template <class T>
__global__ void __launch_bounds__(kThreads) adam_kernel(AdamParams p, const AdamFactors* factors) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < p.n) adam_element<T>(p, *factors, i);
}

}  // namespace fastnas::optimiser
