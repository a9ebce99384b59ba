// The weights' gradients: shares of them, each over some tiles, and their sum.
//
// Roofline of one branch, N positions of C channels in and C out, k x k taps, s bytes an element: reads g, t,
// the source and the gradient between the convolutions, 4 N C s bytes; computes the depthwise outputs again,
// 2 N C (2 k k + C) flop. For C = 16, N = 64 x 32 x 32, 5x5, float32: 16.8 MB and 138 Mflop; the floor on an
// H100 (3.0 TB/s, 67 Tflop/s) is 5.6 us by memory, 2.1 us by arithmetic. g and the source are shared by an
// edge's branches.
#pragma once

#include "separable_stage/products.cuh"

namespace fastnas::separable_stage {

inline constexpr int kWeightOuts = 2 * kDepth;              // output channels of a block,
inline constexpr int kPatches = kDepth / 4 * (kDepth / 4);  // in patches of 4 x 4,
inline constexpr int kSlices =
    kThreads / kPatches;  // each summed by so many threads over every so manieth position

// Of the taps of a depthwise kernel's row: sums over the runs of a tile of the gradient times what it was
// convolved with.
template <int K, int kAdvance>
__device__ __forceinline__ void correlate_runs(const float* window, const Window& w, const float* gradient,
                                               const Tiling& t, int offset, int dilation, int stride,
                                               Four (&sums)[7]) {
  constexpr int slices = kThreads / (4 * K);
  const Runs runs(t.tile_width, stride, dilation);
  const int rows = t.tile_images * t.tile_height;
  const int c = threadIdx.x % 4 * 4, ky = threadIdx.x / 4 % K, slice = threadIdx.x / (4 * K);
  if (slice >= slices) return;
  for (int i = slice; i < rows * runs.per_row; i += slices) {
    const int row = i % rows, first = runs.first(i / rows);
    const int line = row / t.tile_height * w.rows + row % t.tile_height * stride + offset + ky * dilation;
    const float* base = window + (line * w.columns + first * stride + offset) * kDepth + c;
    Four g[kRun];
#pragma unroll
    for (int j = 0; j < kRun; ++j) {
      const int x = first + j * runs.step;
      g[j] = x < t.tile_width ? four_at(gradient + (row * t.tile_width + x) * kRow + c) : zero_four();
    }
#pragma unroll
    for (int column = 0; column < (kRun - 1) * kAdvance + K; ++column) {
      const Four value = four_at(base + column * dilation * kDepth);
#pragma unroll
      for (int j = 0; j < kRun; ++j) {
        const int kx = column - kAdvance * j;
        if (kx < 0 || kx >= K) continue;
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[kx].values[e] += value.values[e] * g[j].values[e];
      }
    }
  }
}

template <int K>
__device__ __forceinline__ void correlate(const float* window, const Window& w, const float* gradient,
                                          const Tiling& t, int offset, int dilation, int stride,
                                          Four (&sums)[7]) {
  if (stride == 2 && dilation == 1)
    correlate_runs<K, 2>(window, w, gradient, t, offset, dilation, stride, sums);
  else
    correlate_runs<K, 1>(window, w, gradient, t, offset, dilation, stride, sums);
}

// The slices' sums of a depthwise kernel, added up in order: (channels, taps) from `to`.
template <int K>
__device__ __forceinline__ void store_correlation(const Four (&sums)[7], int channels, int first,
                                                  float* scratch, float* to) {
  constexpr int slices = kThreads / (4 * K);
  const int c = threadIdx.x % 4 * 4, ky = threadIdx.x / 4 % K, slice = threadIdx.x / (4 * K);
  if (slice < slices)
#pragma unroll
    for (int kx = 0; kx < K; ++kx) four_at(scratch + ((slice * K + ky) * K + kx) * kDepth + c) = sums[kx];
  __syncthreads();
  for (int i = threadIdx.x; i < K * K * kDepth; i += kThreads) {
    float sum = 0.0f;
    for (int s = 0; s < slices; ++s) sum += scratch[s * K * K * kDepth + i];
    const int channel = first + i % kDepth;
    if (channel < channels) to[static_cast<int64_t>(channel) * (K * K) + i / kDepth] = sum;
  }
}

// Blocks (share of the tiles, branch, (tap of a dense convolution, group of output channels, kDepth of the
// source's)): this share's part of the weights' gradients, `numbers` apart.
template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    weights_kernel(const Branches<T> table, const Tiling tiling, int capacity, int window_floats, float eps,
                   int64_t numbers, float* shares) {
  FASTNAS_DYNAMIC_SHARED(bytes);
  __shared__ Norm norm;
  __shared__ int pixels[kMaxPositions], places[kMaxPositions];
  const BranchView<T> b = table.branch[blockIdx.y];
  const int channels = b.source.channels, taps = b.kernel * b.kernel, products = b.dense ? taps : 1;
  const int chunks = (channels + kDepth - 1) / kDepth, groups = (b.channels + kWeightOuts - 1) / kWeightOuts;
  const int first = static_cast<int>(blockIdx.z) % chunks * kDepth;
  const int first_out = static_cast<int>(blockIdx.z) / chunks % groups * kWeightOuts;
  const int tap = static_cast<int>(blockIdx.z) / chunks / groups;
  const bool wide = first_out + kDepth < b.channels;
  const bool depthwise = b.kernel > 0 && !b.dense, correlates = depthwise && first_out == 0;
  float* window = reinterpret_cast<float*>(bytes);
  float* tile = window + window_floats;
  float* gradient = tile + capacity * kRow;
  float* raw[2] = {gradient + capacity * kRow, gradient + 2 * capacity * kRow};
  float* weights = gradient + 3 * capacity * kRow;

  const int patch = threadIdx.x % kPatches, slice = threadIdx.x / kPatches;
  const int out = patch / (kDepth / 4) * 4, c = patch % (kDepth / 4) * 4;
  float product[2][4][4] = {};
  Four correlation[7];
#pragma unroll
  for (int k = 0; k < 7; ++k) correlation[k] = zero_four();
  load_norm(b.source.norm, channels, first, eps, norm);
  if (depthwise) load_depthwise(b.depthwise, taps, channels, first, false, weights);

  const int tiles = tiling.tiles();
  const int begin = static_cast<int>(static_cast<int64_t>(tiles) * blockIdx.x / gridDim.x);
  const int end = static_cast<int>(static_cast<int64_t>(tiles) * (blockIdx.x + 1) / gridDim.x);
  for (int index = begin; index < end; ++index) {
    const Tile at = tile_at(tiling, index);
    const Window w = window_of(tiling, at, b);
    find_pixels(tiling, at, pixels);
    if (!depthwise) find_places(tiling, w, b.stride, places);
    __syncthreads();
    load_window(b.source, tiling.images, at.image, tiling.tile_images, w, first, norm, b.relu,
                window_slack(b.stride, b.dilation), window);
    load_raw_gradient(b, tiling, pixels, first_out, raw[0]);
    if (wide) load_raw_gradient(b, tiling, pixels, first_out + kDepth, raw[1]);
    if (correlates) {
      const int channel = threadIdx.x % 4 * 4, aligned = channels % 4 == 0;
#pragma unroll 4
      for (int p = threadIdx.x / 4; p < tiling.positions(); p += kThreads / 4) {
        const T* from = b.gradient + static_cast<int64_t>(pixels[p]) * channels;
        four_at(gradient + p * kRow + channel) =
            pixels[p] >= 0 ? load_four(from, first + channel, channels, aligned) : zero_four();
      }
    }
    __syncthreads();
    fill_tile(b, window, w, weights, tiling, places, tap, tile);
    __syncthreads();
    for (int p = slice; p < tiling.positions(); p += kSlices) {
      const Four d = four_at(tile + p * kRow + c);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (half == 1 && !wide) continue;
        const Four g = four_at(raw[half] + p * kRow + out);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) product[half][i][j] += g.values[i] * d.values[j];
      }
    }
    if (!correlates) continue;
    const int reach = b.dilation * (b.kernel / 2), offset = max(reach, b.shift) - reach;
    if (b.kernel == 3)
      correlate<3>(window, w, gradient, tiling, offset, b.dilation, b.stride, correlation);
    else if (b.kernel == 5)
      correlate<5>(window, w, gradient, tiling, offset, b.dilation, b.stride, correlation);
    else
      correlate<7>(window, w, gradient, tiling, offset, b.dilation, b.stride, correlation);
  }

  float* to = shares + blockIdx.x * numbers + b.offset;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) tile[(slice * kDepth + out + i) * kDepth + c + j] = product[half][i][j];
    __syncthreads();
    for (int i = threadIdx.x; i < kDepth * kDepth; i += kThreads) {
      float sum = 0.0f;
      for (int s = 0; s < kSlices; ++s) sum += tile[s * kDepth * kDepth + i];
      const int row = first_out + half * kDepth + i / kDepth, column = first + i % kDepth;
      if (row < b.channels && column < channels)
        to[(static_cast<int64_t>(row) * channels + column) * products + tap] = sum;
    }
  }
  if (!correlates) return;
  __syncthreads();
  float* depthwise_to = to + static_cast<int64_t>(b.channels) * channels;
  if (b.kernel == 3)
    store_correlation<3>(correlation, channels, first, tile, depthwise_to);
  else if (b.kernel == 5)
    store_correlation<5>(correlation, channels, first, tile, depthwise_to);
  else
    store_correlation<7>(correlation, channels, first, tile, depthwise_to);
}

inline constexpr int kSumThreads = 128;

// Blocks (numbers, branch): the shares in order.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    sum_shares_kernel(const Branches<T> table, int share_count, int64_t numbers, const float* shares) {
  const BranchView<T> b = table.branch[blockIdx.y];
  const int taps = b.kernel * b.kernel;
  const int64_t products = static_cast<int64_t>(b.channels) * b.source.channels * (b.dense ? taps : 1);
  const int64_t all = products + (b.dense ? 0 : b.source.channels * taps);
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  if (i >= all) return;
  double sum = 0;
#pragma unroll 8
  for (int s = 0; s < share_count; ++s) sum += static_cast<double>(shares[s * numbers + b.offset + i]);
  (i < products ? b.pointwise_grad[i] : b.depthwise_grad[i - products]) = static_cast<float>(sum);
}

}  // namespace fastnas::separable_stage
