// Device helpers that kernels share. No torch header: raw pointers only. The few CUDA names used (threadIdx,
// blockIdx, __shared__, __syncthreads, bf16 conversions) are what a host shim has to provide to run kernels
// on a CPU.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

// Starts a kernel. A macro, because a host shim has to say it differently; template arguments go in
// parentheses around the kernel: FASTNAS_LAUNCH((kernel<float>), blocks, threads, stream, arguments...). The
// other one with so many bytes of dynamic shared memory, which FASTNAS_DYNAMIC_SHARED(name) gives the kernel
// as an array of bytes, aligned to 16.
#ifndef FASTNAS_LAUNCH_SHARED
#define FASTNAS_LAUNCH_SHARED(kernel, blocks, threads, bytes, stream, ...) \
  (kernel)<<<blocks, threads, bytes, stream>>>(__VA_ARGS__)
#define FASTNAS_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif
#define FASTNAS_LAUNCH(kernel, blocks, threads, stream, ...) \
  FASTNAS_LAUNCH_SHARED(kernel, blocks, threads, 0, stream, __VA_ARGS__)

namespace fastnas::cuda {

using BFloat16 = __nv_bfloat16;

// bf16 through intrinsics: torch's nvcc flags switch the implicit conversions off.
__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(BFloat16 value) { return __bfloat162float(value); }

template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ double from_float<double>(float value) {
  return value;
}
template <>
__device__ __forceinline__ BFloat16 from_float<BFloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// Elements moved by one 16-byte access.
template <class T>
inline constexpr int kPack = 16 / static_cast<int>(sizeof(T));

template <class T>
struct alignas(16) Pack {
  T values[kPack<T>];
};

// The elements at [i, i + kPack) of an array of n; beyond n they are zero. One 16-byte access where the array
// is `kAligned` and the pack whole, else element by element. A pack stays in T, in 4 registers, until it is
// used.
template <bool kAligned, class T>
__device__ __forceinline__ Pack<T> load_pack(const T* array, int64_t i, int64_t n) {
  if (kAligned && i + kPack<T> <= n) return *reinterpret_cast<const Pack<T>*>(array + i);
  Pack<T> pack;
#pragma unroll
  for (int e = 0; e < kPack<T>; ++e) pack.values[e] = i + e < n ? array[i + e] : from_float<T>(0.0f);
  return pack;
}

template <bool kAligned, class T>
__device__ __forceinline__ void store_pack(T* array, int64_t i, int64_t n, const Pack<T>& pack) {
  if (kAligned && i + kPack<T> <= n) {
    *reinterpret_cast<Pack<T>*>(array + i) = pack;
  } else {
#pragma unroll
    for (int e = 0; e < kPack<T>; ++e)
      if (i + e < n) array[i + e] = pack.values[e];
  }
}

// The sum of `value` over the block's kThreads threads, in a tree whose order is fixed; all threads receive
// it. `scratch` is kThreads numbers of shared memory, free again when the call returns.
template <int kThreads, class Number>
__device__ __forceinline__ Number block_sum(Number value, Number* scratch) {
  static_assert((kThreads & (kThreads - 1)) == 0, "the tree halves the block");
  scratch[threadIdx.x] = value;
  __syncthreads();
#pragma unroll
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) scratch[threadIdx.x] += scratch[threadIdx.x + half];
    __syncthreads();
  }
  const Number total = scratch[0];
  __syncthreads();
  return total;
}

// Whether a whole array can be accessed in packs.
inline bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace fastnas::cuda
