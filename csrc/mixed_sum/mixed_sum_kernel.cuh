// mixed_sum on a GPU.
//
// Roofline, for n elements of s bytes and K branches; the floor is on an H100 at the 3.0 TB/s that a
// device-to-device copy was measured at, for K = 8, n = 64 x 16 x 32 x 32, float32:
//   forward   reads K n s, writes n s            37.7 MB   16.8 Mflop   12.6 us
//   backward  reads (K + 1) n s, writes K n s    71.3 MB   25.2 Mflop   23.8 us
// Under 0.5 flop per byte: bound by memory, so every thread keeps kInFlight 16-byte loads in flight and
// nothing else matters. For K > kGroup backward reads g once per group of kGroup branches, 1 in 2 kGroup of
// the traffic.
//
// No float atomics: every sum has one order, a function of K and n alone.
#pragma once

#include "cuda/device.cuh"
#include "mixed_sum/mixed_sum.h"

namespace fastnas::mixed_sum {

using cuda::block_sum;
using cuda::from_float;
using cuda::kPack;
using cuda::load_pack;
using cuda::Pack;
using cuda::store_pack;
using cuda::to_float;

inline constexpr int kThreads = 256;
inline constexpr int kInFlight = 4;  // branches whose loads are issued together in forward
inline constexpr int kGroup = 8;     // branches per block in backward: 8 running sums in registers

// The kernel's argument: up to kTableSize branches, those from `first` of all.
struct BranchTable {
  const void* branches[kTableSize];
  void* grads[kTableSize];
  int first;
  int count;
};
static_assert(sizeof(BranchTable) <= 4000, "kernel arguments are limited to 4 KB before sm_70 and CUDA 12.1");

// One pack of elements per thread: out = sum_k w_k x_k over the table. `running` holds the sum over earlier
// tables (read unless this is the first) and takes the new one unless this is the last, which writes `out`.
template <class T, class W, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(BranchTable table, const W* weights, T* out, float* running, bool last, int64_t n) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPack<T>;
  if (i >= n) return;
  float sum[kPack<T>];
#pragma unroll
  for (int e = 0; e < kPack<T>; ++e) sum[e] = table.first > 0 && i + e < n ? running[i + e] : 0.0f;

  for (int k = 0; k < table.count; k += kInFlight) {
    Pack<T> x[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j)
      if (k + j < table.count) x[j] = load_pack<kAligned>(static_cast<const T*>(table.branches[k + j]), i, n);
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      if (k + j >= table.count) continue;
      const float weight = to_float(weights[table.first + k + j]);
#pragma unroll
      for (int e = 0; e < kPack<T>; ++e) sum[e] += weight * to_float(x[j].values[e]);
    }
  }

  if (last) {
    Pack<T> result;
#pragma unroll
    for (int e = 0; e < kPack<T>; ++e) result.values[e] = from_float<T>(sum[e]);
    store_pack<kAligned>(out, i, n, result);
  } else {
#pragma unroll
    for (int e = 0; e < kPack<T>; ++e)
      if (i + e < n) running[i + e] = sum[e];
  }
}

// Blocks (x, y): y is a group of kGroup branches, x a share of the n elements, walked in steps of the whole
// grid. Writes d x_k = w_k g where its pointer is set, and where `shares` is set this block's part of <g,
// x_k> into shares[k gridDim.x + x].
template <class T, class W, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(BranchTable table, const T* grad, const W* weights, float* shares, int64_t n) {
  __shared__ float scratch[kThreads];
  const int base = blockIdx.y * kGroup;
  const int count = table.count - base < kGroup ? table.count - base : kGroup;
  float weight[kGroup], dot[kGroup];
#pragma unroll
  for (int j = 0; j < kGroup; ++j) {
    weight[j] = j < count ? to_float(weights[table.first + base + j]) : 0.0f;
    dot[j] = 0.0f;
  }

  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kPack<T>;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPack<T>; i < n; i += step) {
    const Pack<T> g = load_pack<kAligned>(grad, i, n);
    if (shares != nullptr) {
      Pack<T> x[kGroup];
#pragma unroll
      for (int j = 0; j < kGroup; ++j)  // all loads before the first store, which the compiler must not pass
        if (j < count) x[j] = load_pack<kAligned>(static_cast<const T*>(table.branches[base + j]), i, n);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        if (j >= count) continue;
#pragma unroll
        for (int e = 0; e < kPack<T>; ++e) dot[j] += to_float(g.values[e]) * to_float(x[j].values[e]);
      }
    }
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      if (j >= count || table.grads[base + j] == nullptr) continue;
      Pack<T> dx;
#pragma unroll
      for (int e = 0; e < kPack<T>; ++e) dx.values[e] = from_float<T>(weight[j] * to_float(g.values[e]));
      store_pack<kAligned>(static_cast<T*>(table.grads[base + j]), i, n, dx);
    }
  }

  if (shares == nullptr) return;
#pragma unroll
  for (int j = 0; j < kGroup; ++j) {
    if (j >= count) continue;  // the same for the whole block, so every thread meets the barriers inside
    const float total = block_sum<kThreads>(dot[j], scratch);
    if (threadIdx.x == 0)
      shares[static_cast<int64_t>(table.first + base + j) * gridDim.x + blockIdx.x] = total;
  }
}

// Block k: d w_k = the sum of its `share_count` shares.
template <class W>
__global__ void __launch_bounds__(kThreads)
    weights_grad_kernel(const float* shares, int share_count, W* weights_grad) {
  __shared__ float scratch[kThreads];
  const float* mine = shares + static_cast<int64_t>(blockIdx.x) * share_count;
  float sum = 0.0f;
  for (int s = threadIdx.x; s < share_count; s += kThreads) sum += mine[s];
  const float total = block_sum<kThreads>(sum, scratch);
  if (threadIdx.x == 0) weights_grad[blockIdx.x] = from_float<W>(total);
}

}  // namespace fastnas::mixed_sum
