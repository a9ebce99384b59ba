// The weights' gradients: shares of them, each over some tiles, and their sum.
//
// Roofline of one branch, N positions of C channels in and C out, k x k taps, s bytes an element: reads g, t,
// the source and the gradient between the convolutions, 4 N C s bytes; computes the depthwise outputs again,
// 2 N C (2 k k + C) flop. For C = 16, N = 64 x 32 x 32, 5x5, float32: 16.8 MB and 138 Mflop; the floor on an
// H100 (3.0 TB/s, 67 Tflop/s) is 5.6 us by memory, 2.1 us by arithmetic. g and the source are shared by an
// edge's branches.
#pragma once

#include <algorithm>

#include "separable_stage/products.cuh"

namespace fastnas::separable_stage {

// Output channels of a block, of whose products each thread has 8 x 4.
inline constexpr int kWeightOuts = 2 * kDepth;
inline constexpr int kSums = 25;  // taps at most that a thread has
// All sums of a block at the end fit where its four tiles were.
static_assert(kThreads * std::max(32, kSums) <= 4 * kLeastPositions * kRow);

// How the gradient of a depthwise kernel's weights is shared among threads: each has one channel, kRows of
// the kernel's rows, and every kSlices-th block.
template <int K>
struct TapShare {
  static constexpr int kParts = K == 7 ? 4 : 1, kRows = (K + kParts - 1) / kParts;
  static constexpr int kSlices = kThreads / kDepth / kParts;
  static_assert(kRows * K <= kSums);
  int channel = static_cast<int>(threadIdx.x) % kDepth;
  int first_row = static_cast<int>(threadIdx.x) / kDepth % kParts * kRows;
  int slice = static_cast<int>(threadIdx.x) / kDepth / kParts;
};

// Sums over the outputs of a tile of the gradient times what it was convolved with, tap by tap.
template <int K, int kAdvance, int kDilation>
__device__ __forceinline__ void correlate(const float* window, const Window& w, const float* gradient,
                                          const Tiling& t, int offset, int stride, float (&sums)[kSums]) {
  constexpr int kRows = TapShare<K>::kRows;
  const Blocks blocks(t, stride, kDilation);
  const TapShare<K> own;
#pragma unroll 1
  for (int i = own.slice; i < blocks.count(); i += own.kSlices) {
    const Blocks::Block block = blocks[i];
    float g[kRun][kRun];
#pragma unroll
    for (int y = 0; y < kRun; ++y)
#pragma unroll
      for (int x = 0; x < kRun; ++x) {
        const int row = block.y + y * blocks.step(), column = block.x + x * blocks.step();
        const int position = (block.image * t.tile_height + row) * t.tile_width + column;
        const bool there = row < t.tile_height && column < t.tile_width;
        g[y][x] = there ? gradient[position * kRow + own.channel] : 0.0f;
      }
    for_taps<kRows, K, kAdvance, kDilation>(
        window, w, block, own.channel, offset, stride, own.first_row,
        [&](int tap, int y, int x, float value) { sums[tap] += value * g[y][x]; });
  }
}

// The threads' sums, added up in order: (channels, taps) from `to`.
template <int K>
__device__ __forceinline__ void store_correlation(const float (&sums)[kSums], int channels, int first,
                                                  float* scratch, float* to) {
  constexpr int kTaps = K * K * kDepth;
  const TapShare<K> own;
#pragma unroll
  for (int tap = 0; tap < own.kRows * K; ++tap) {
    const int all = own.first_row * K + tap;
    if (all < K * K) scratch[own.slice * kTaps + all * kDepth + own.channel] = sums[tap];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTaps; i += kThreads) {
    float sum = 0.0f;
    for (int s = 0; s < own.kSlices; ++s) sum += scratch[s * kTaps + i];
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
  float* raw = gradient + capacity * kRow;  // twice: of kDepth output channels each
  float* weights = raw + 2 * capacity * kRow;

  // This thread's eight rows and four columns of the product, summed over every so manieth position.
  const int patches = wide ? 16 : 8, slices = kThreads / patches;
  const int patch = static_cast<int>(threadIdx.x) % patches, slice = static_cast<int>(threadIdx.x) / patches;
  const int out = patch / 4 * 8, c = patch % 4 * 4;
  float product[8][4] = {}, correlation[kSums] = {};
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
    load_raw_gradient(b, tiling, pixels, first_out, raw);
    if (wide) load_raw_gradient(b, tiling, pixels, first_out + kDepth, raw + capacity * kRow);
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
    const float* factor = raw + out / kDepth * capacity * kRow + out % kDepth;
#pragma unroll 2
    for (int p = slice; p < tiling.positions(); p += slices) {
      const Four d = four_at(tile + p * kRow + c);
      const Four g[2] = {four_at(factor + p * kRow), four_at(factor + p * kRow + 4)};
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) product[i][j] += g[i / 4].values[i % 4] * d.values[j];
    }
    if (!correlates) continue;
    const int reach = b.dilation * (b.kernel / 2), offset = max(reach, b.shift) - reach;
    FASTNAS_FOR_DEPTHWISE(b.kernel, b.stride, b.dilation, correlate, window, w, gradient, tiling, offset,
                          b.stride, correlation);
  }

  float* to = shares + blockIdx.x * numbers + b.offset;
  __syncthreads();
  const int outs = wide ? kWeightOuts : kDepth;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const Four row = {{product[i][0], product[i][1], product[i][2], product[i][3]}};
    four_at(tile + (slice * outs + out + i) * kDepth + c) = row;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < outs * kDepth; i += kThreads) {
    float sum = 0.0f;
    for (int s = 0; s < slices; ++s) sum += tile[s * outs * kDepth + i];
    const int row = first_out + i / kDepth, column = first + i % kDepth;
    if (row < b.channels && column < channels)
      to[(static_cast<int64_t>(row) * channels + column) * products + tap] = sum;
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
