// What a tile reads of the source, in shared memory, and depthwise convolutions over it: in rows of kRun
// outputs held in registers.
#pragma once

#include "separable_stage/tiles.cuh"

namespace fastnas::separable_stage {

// Mean and 1 / sqrt(variance + eps) of a source's channels [first, first + kDepth), 0 and 1 without a norm.
struct Norm {
  float mean[kDepth], rstd[kDepth];
};

__device__ __forceinline__ void load_norm(const float* norm, int channels, int first, float eps, Norm& to) {
  const int c = first + static_cast<int>(threadIdx.x);
  if (threadIdx.x < kDepth) {
    const bool there = norm != nullptr && c < channels;
    to.mean[threadIdx.x] = there ? norm[c] : 0.0f;
    to.rstd[threadIdx.x] = there ? 1.0f / sqrtf(norm[channels + c] + eps) : 1.0f;
  }
}

__device__ __forceinline__ float activate(float value, float mean, float rstd, bool relu) {
  const float normalised = (value - mean) * rstd;
  return relu && normalised < 0.0f ? 0.0f : normalised;  // a NaN stays one
}

// The part of some images that a tile reads: rows and columns from (y, x), zeros outside of the images. In
// shared memory (tile images, rows, columns, kDepth).
struct Window {
  int y, x, rows, columns;
};

// Whoever reads a whole run of outputs at a row's end reads beyond the window: so many floats behind it. What
// comes of them is left out, or multiplied with zero.
__host__ __device__ constexpr int window_slack(int stride, int dilation) {
  return kRun * stride * dilation * kDepth;
}

__host__ __device__ inline int odd(int number) { return number | 1; }  // rows in different banks

// Of each position of a tile: where its first pixel lies in the window, in pixels.
__device__ __forceinline__ void find_places(const Tiling& t, const Window& w, int stride, int* places) {
  for (int p = threadIdx.x; p < t.positions(); p += blockDim.x) {
    const int x = p % t.tile_width, rest = p / t.tile_width;
    const int line = rest / t.tile_height * w.rows + rest % t.tile_height * stride;
    places[p] = line * w.columns + x * stride;
  }
}

// What the outputs of a tile read of the source.
template <class T>
__device__ __forceinline__ Window window_of(const Tiling& t, const Tile& tile, const BranchView<T>& b) {
  const int reach = b.dilation * (b.kernel / 2), pad = max(reach, b.shift);
  return {tile.y * b.stride - pad, tile.x * b.stride - pad, (t.tile_height - 1) * b.stride + 1 + 2 * pad,
          odd((t.tile_width - 1) * b.stride + 1 + 2 * pad)};
}

// Fills a window with channels [first, first + kDepth) of `source`, and with zeros the `slack` behind it. A
// thread has one column and four channels, and kInFlight rows on their way at a time.
template <class T>
__device__ __forceinline__ void load_window(const SourceView<T>& source, int images, int first_image,
                                            int tile_images, const Window& w, int first, const Norm& norm,
                                            bool relu, int slack, float* to) {
  const int c = threadIdx.x % 4 * 4, lane = threadIdx.x / 4 % 32;
  const int group = static_cast<int>(threadIdx.x) / 128, groups = static_cast<int>(blockDim.x) / 128;
  const int64_t line = source.width * source.pixel;
  for (int i = 0; i < tile_images; ++i) {
    const T* image = source.x + (first_image + i) * source.height * line;
    for (int column = lane; column < w.columns; column += 32) {
      const int x = w.x + column;
      const bool inside = first_image + i < images && x >= 0 && x < source.width;
      for (int row = group * kInFlight; row < w.rows; row += groups * kInFlight) {
        Four four[kInFlight];
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) {
          const int y = w.y + row + j;
          const bool there = inside && row + j < w.rows && y >= 0 && y < source.height;
          four[j] = zero_four();
          if (there)
            four[j] =
                load_four(image + y * line + x * source.pixel, first + c, source.channels, source.aligned);
        }
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) {
          const int y = w.y + row + j;
          if (row + j >= w.rows) continue;
          if (inside && y >= 0 && y < source.height) {
#pragma unroll
            for (int e = 0; e < 4; ++e)  // channels that are not there stay zero: their mean is 0
              four[j].values[e] = activate(four[j].values[e], norm.mean[c + e], norm.rstd[c + e], relu);
          }
          four_at(to + ((i * w.rows + row + j) * w.columns + column) * kDepth + c) = four[j];
        }
      }
    }
  }
  float* behind = to + tile_images * w.rows * w.columns * kDepth;
  for (int i = threadIdx.x; i < slack; i += blockDim.x) behind[i] = 0.0f;
}

// Depthwise weights of channels [first, first + kDepth) as (taps, kDepth), or with the taps in reverse.
__device__ __forceinline__ void load_depthwise(const float* weights, int taps, int channels, int first,
                                               bool reversed, float* to) {
  for (int i = threadIdx.x; i < taps * kDepth; i += blockDim.x) {
    const int tap = i / kDepth, c = i % kDepth;
    const int from = reversed ? taps - 1 - tap : tap;
    to[i] = first + c < channels ? weights[(first + c) * taps + from] : 0.0f;
  }
}

// How the outputs of a depthwise convolution are split into runs: with dilation 2 and stride 1 outputs that
// are two apart share what they read.
struct Runs {
  int step, per_row;
  __device__ Runs(int width, int stride, int dilation)
      : step(stride == 1 ? dilation : 1), per_row(step * (((width + step - 1) / step + kRun - 1) / kRun)) {}
  __device__ int first(int run) const { return run % step + run / step * (kRun * step); }
};

// Calls emit(position of the run's first output, first column, step, c, sums) for each run of outputs and
// each four channels of a tile. kernel K, and kAdvance input columns (counted in taps) from output to output.
template <int K, int kAdvance, class Emit>
__device__ __forceinline__ void depthwise_runs(const float* window, const Window& w, const float* weights,
                                               const Tiling& t, int offset, int dilation, int stride,
                                               const Emit& emit) {
  const Runs runs(t.tile_width, stride, dilation);
  const int rows = t.tile_images * t.tile_height, items = 4 * rows * runs.per_row;
  for (int item = threadIdx.x; item < items; item += blockDim.x) {
    const int c = item % 4 * 4, row = item / 4 % rows, first = runs.first(item / 4 / rows);
    const int line = row / t.tile_height * w.rows + row % t.tile_height * stride + offset;
    const float* base = window + (line * w.columns + first * stride + offset) * kDepth + c;
    Four sums[kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i) sums[i] = zero_four();
#pragma unroll 1
    for (int ky = 0; ky < K; ++ky) {
      const float* from = base + ky * dilation * w.columns * kDepth;
      Four weight[K];
#pragma unroll
      for (int kx = 0; kx < K; ++kx) weight[kx] = four_at(weights + (ky * K + kx) * kDepth + c);
#pragma unroll
      for (int column = 0; column < (kRun - 1) * kAdvance + K; ++column) {
        const Four value = four_at(from + column * dilation * kDepth);
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
          const int kx = column - kAdvance * i;
          if (kx < 0 || kx >= K) continue;
#pragma unroll
          for (int e = 0; e < 4; ++e) sums[i].values[e] += value.values[e] * weight[kx].values[e];
        }
      }
    }
    emit(row * t.tile_width, first, runs.step, c, sums);
  }
}

// The same for whichever kernel a branch has. `offset`: where the first tap of output (0, 0) lies in the
// window.
template <class Emit>
__device__ __forceinline__ void depthwise(int kernel, const float* window, const Window& w,
                                          const float* weights, const Tiling& t, int offset, int dilation,
                                          int stride, const Emit& emit) {
  const bool spread = stride == 2 && dilation == 1;
#define FASTNAS_DEPTHWISE(K)                                                           \
  spread ? depthwise_runs<K, 2>(window, w, weights, t, offset, dilation, stride, emit) \
         : depthwise_runs<K, 1>(window, w, weights, t, offset, dilation, stride, emit)
  if (kernel == 3)
    FASTNAS_DEPTHWISE(3);
  else if (kernel == 5)
    FASTNAS_DEPTHWISE(5);
  else
    FASTNAS_DEPTHWISE(7);
#undef FASTNAS_DEPTHWISE
}

}  // namespace fastnas::separable_stage
