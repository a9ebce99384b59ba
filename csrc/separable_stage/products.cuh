// What is multiplied with 1x1 weights: a tile of depthwise outputs, or of the raw outputs' gradient; every
// thread holds the sums of a few positions and channels.
#pragma once

#include "separable_stage/windows.cuh"

namespace fastnas::separable_stage {

// The tile that a branch multiplies: depthwise outputs, or one tap's pixels where there is no depthwise
// convolution. (positions, kRow)
template <class T>
__device__ __forceinline__ void fill_tile(const BranchView<T>& b, const float* window, const Window& w,
                                          const float* weights, const Tiling& t, const int* places, int tap,
                                          float* tile) {
  const int reach = b.dilation * (b.kernel / 2), pad = max(reach, b.shift);
  if (b.kernel > 0 && !b.dense) {
    FASTNAS_FOR_DEPTHWISE(
        b.kernel, b.stride, b.dilation, depthwise_blocks, window, w, weights, t, pad - reach, b.stride,
        [&](int position, int channel, float sum) { tile[position * kRow + channel] = sum; });
    return;
  }
  const int row = b.dense ? tap / b.kernel : pad + b.shift, column = b.dense ? tap % b.kernel : pad + b.shift;
  const float* first = window + row * w.pitch + column * kDepth;
  for (int item = threadIdx.x; item < 4 * t.positions(); item += blockDim.x)
    four_at(tile + item / 4 * kRow + item % 4 * 4) = four_at(first + places[item / 4] + item % 4 * 4);
}

// What makes the gradient of four channels of raw outputs, a (g + b (t - mean) + c); zero beyond the
// channels.
struct RawGradient {
  Four scale, of_raw, constant, mean;

  template <class T>
  __device__ RawGradient(const BranchView<T>& b, int c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool there = c + i < b.channels;
      const float* coefficients = b.coefficients + c + i;
      scale.values[i] = there ? coefficients[0] : 0.0f;
      of_raw.values[i] = there ? coefficients[b.coefficient_row] : 0.0f;
      constant.values[i] = there ? coefficients[2 * b.coefficient_row] : 0.0f;
      mean.values[i] = there ? b.mean[c + i] : 0.0f;
    }
  }
  __device__ Four operator()(const Four& g, const Four& raw) const {
    Four out;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      out.values[i] = scale.values[i] * ((g.values[i] + constant.values[i]) +
                                         of_raw.values[i] * (raw.values[i] - mean.values[i]));
    return out;
  }
};

// Calls emit(position, gradient) for each position of a tile, zero outside: of the thread's four channels,
// from `channel` on. blockDim.x / 4 threads go over the positions.
template <class T, class Emit>
__device__ __forceinline__ void for_raw_gradients(const BranchView<T>& b, const Tiling& t, const int* pixels,
                                                  int channel, const Emit& emit) {
  const RawGradient gradient(b, channel);
  const int lanes = blockDim.x / 4;
  for (int p = threadIdx.x / 4; p < t.positions(); p += lanes * kInFlight) {
    Four g[kInFlight], raw[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int at = p + j * lanes, pixel = at < t.positions() ? pixels[at] : -1;
      g[j] = raw[j] = zero_four();
      if (pixel < 0) continue;
      g[j] = load_four(b.grad + pixel * b.grad_pixel, channel, b.channels, b.raw_aligned);
      raw[j] = load_four(b.raw + pixel * b.raw_pixel, channel, b.channels, b.raw_aligned);
    }
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int at = p + j * lanes;
      if (at < t.positions()) emit(at, pixels[at] < 0 ? zero_four() : gradient(g[j], raw[j]));
    }
  }
}

// The gradients of channels [first, first + kDepth) as a tile (positions, kRow).
template <class T>
__device__ __forceinline__ void load_raw_gradient(const BranchView<T>& b, const Tiling& t, const int* pixels,
                                                  int first, float* tile) {
  const int c = threadIdx.x % 4 * 4;
  for_raw_gradients(b, t, pixels, first + c,
                    [&](int p, const Four& gradient) { four_at(tile + p * kRow + c) = gradient; });
}

// A thread's part of a product (positions, kDepth) x (kDepth, outs): kPositions positions, `lanes` apart, of
// kOuts neighbouring columns.
template <int kPositions, int kOuts>
struct Product {
  float sum[kPositions][kOuts];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kPositions; ++i)
#pragma unroll
      for (int j = 0; j < kOuts; ++j) sum[i][j] = 0.0f;
  }

  // `weights` from this thread's first column, rows `row` apart.
  __device__ __forceinline__ void add(const float* tile, int position, int lanes, const float* weights,
                                      int row) {
#pragma unroll
    for (int k = 0; k < kDepth; k += 4) {
      Four a[kPositions];
#pragma unroll
      for (int i = 0; i < kPositions; ++i) a[i] = four_at(tile + (position + i * lanes) * kRow + k);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float w[kOuts];
#pragma unroll
        for (int j = 0; j < kOuts; j += 4) {
          const Four four = four_at(weights + (k + e) * row + j);
#pragma unroll
          for (int f = 0; f < 4; ++f) w[j + f] = four.values[f];
        }
#pragma unroll
        for (int i = 0; i < kPositions; ++i)
#pragma unroll
          for (int j = 0; j < kOuts; ++j) sum[i][j] += a[i].values[e] * w[j];
      }
    }
  }
};

}  // namespace fastnas::separable_stage
