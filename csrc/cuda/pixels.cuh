// Channels-last images in kernels: neighbouring channels by one access, and sums over a block's pixels.
//
// A block's threads lie over a tile of channels: thread t has the channels W (t % across) to W (t % across) +
// W - 1 of the tile, and pixel t / across among `rows` that the block takes at a time. So consecutive threads
// take consecutive memory. W is 16 bytes' worth where every pixel begins at a multiple of 16 bytes, else 1.
#pragma once

#include "cuda/device.cuh"

namespace fastnas::cuda {

// W neighbours in memory, moved by one access (by two, where they are 32 bytes).
template <class T, int W>
struct alignas(sizeof(T) * W < 16 ? sizeof(T) * W : 16) Lanes {
  T values[W];
};

template <int W, class T>
__device__ __forceinline__ Lanes<T, W> load_lanes(const T* from) {
  return *reinterpret_cast<const Lanes<T, W>*>(from);
}

template <class T, int W>
__device__ __forceinline__ void store_lanes(T* to, const Lanes<T, W>& lanes) {
  *reinterpret_cast<Lanes<T, W>*>(to) = lanes;
}

template <int W>
__device__ __forceinline__ Lanes<float, W> zero_lanes() {
  Lanes<float, W> lanes;
#pragma unroll
  for (int e = 0; e < W; ++e) lanes.values[e] = 0.0f;
  return lanes;
}

// Whether pixels can be accessed in packs.
inline bool is_packed(const void* data, int64_t pixel, int64_t element) {
  return is_aligned(data) && pixel * element % 16 == 0;
}

// Sums M times W numbers of each thread over the block's pixels, in a tree whose order is fixed: the threads
// of pixel 0 receive the sums, the others what is left of the tree. Every thread of the block calls it, those
// beyond `rows` times `across` with whatever they have. `scratch` is M kThreads lanes of shared memory, free
// again when the call returns.
template <int kThreads, int M, int W>
__device__ __forceinline__ void sum_pixels(Lanes<float, W> (&value)[M], int rows, int across,
                                           Lanes<float, W>* scratch) {
  const int t = threadIdx.x;
#pragma unroll
  for (int m = 0; m < M; ++m) scratch[m * kThreads + t] = value[m];
  for (int left = rows; left > 1;) {
    const int half = (left + 1) / 2;
    __syncthreads();
    if (t < (left - half) * across) {
#pragma unroll
      for (int m = 0; m < M; ++m) {
        const Lanes<float, W> other = scratch[m * kThreads + t + half * across];
#pragma unroll
        for (int e = 0; e < W; ++e) value[m].values[e] += other.values[e];
        scratch[m * kThreads + t] = value[m];
      }
    }
    left = half;
  }
  __syncthreads();  // spare: no caller needs it yet, but it is what the last sentence above promises
}

}  // namespace fastnas::cuda
