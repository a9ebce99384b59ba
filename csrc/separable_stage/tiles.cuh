// The separable stage on a GPU: what its kernels share. A block works on a tile of up to 256 positions (a few
// whole images, or a part of one) and 16 channels at a time: it brings the window of the source that the tile
// reads into shared memory, activated, with zeros around, runs a depthwise convolution over it in rows of
// kRun outputs held in registers, and multiplies the tile with the 1x1 weights, every thread holding the sums
// of a few positions and channels.
//
// No float atomics: sums over tiles are left in a workspace, one number a tile or a share of the tiles, and a
// last kernel adds them up in order, in double. How many there are depends on sizes alone.
#pragma once

#include "cuda/device.cuh"
#include "separable_stage/separable_stage.h"

namespace fastnas::separable_stage {

using cuda::block_sum;
using cuda::from_float;
using cuda::to_float;

inline constexpr int kThreads = 128;
inline constexpr int kFinishThreads = 64;  // of kernels that add up tiles
inline constexpr int kDepth = 16;          // channels in shared memory at a time
// Floats from position to position of a tile: 16, and 4 more, so that eight positions lie in different banks.
inline constexpr int kRow = kDepth + 4;
inline constexpr int kRun = 4;       // outputs of a row that a thread computes together
inline constexpr int kInFlight = 4;  // loads that a thread has on their way at a time
inline constexpr int kMaxPositions = 256;
inline constexpr int kMaxTaps = 49;   // of a 7x7 kernel
inline constexpr int kBranches = 16;  // of a launch: their table travels in the kernel's argument

// A source as kernels see it; norm: mean (channels), variance (channels), or null.
template <class T>
struct SourceView {
  const T* x;
  const float* norm;
  int64_t pixel;
  int height, width, channels;
  bool aligned;  // four channels from a multiple of four are one access
};

// A branch as kernels see it. `gradient` lies between the depthwise and the 1x1 convolution: backward's first
// kernel leaves it in the workspace, (positions, source channels) without gaps.
template <class T>
struct BranchView {
  SourceView<T> source;
  const float *depthwise, *pointwise;
  T* raw;
  const T* grad;
  T* gradient;
  float *mean, *variance;
  const float* coefficients;
  float *depthwise_grad, *pointwise_grad;
  int64_t raw_pixel, grad_pixel, coefficient_row;
  int kernel, dilation, stride, shift, channels;
  bool dense, transposed, relu, raw_aligned;
  // Where its numbers begin in the workspace: partial moments or gradients of its weights.
  int64_t offset;
};

template <class T>
struct Branches {
  BranchView<T> branch[kBranches];
};
static_assert(sizeof(Branches<float>) <= 3600, "kernel arguments are limited to 4 KB before CUDA 12.1");

// Tiles of images of height x width: each of `images` images by rows by columns, at most kPositions
// positions.
struct Tiling {
  int images, height, width;                  // of what is tiled
  int tile_images, tile_height, tile_width;   // of a tile
  int tiles_down, tiles_across, tile_groups;  // how many
  __host__ __device__ int tiles() const { return tiles_down * tiles_across * tile_groups; }
  __host__ __device__ int positions() const { return tile_images * tile_height * tile_width; }
};

// One tile: its first image, row and column.
struct Tile {
  int image, y, x;
};

__device__ __forceinline__ Tile tile_at(const Tiling& t, int index) {
  const int across = index % t.tiles_across, rest = index / t.tiles_across;
  return {rest / t.tiles_down * t.tile_images, rest % t.tiles_down * t.tile_height, across * t.tile_width};
}

// A position of a tile, and whether it lies inside the images.
struct Position {
  int image, y, x;
  bool inside;
};

__device__ __forceinline__ Position position_at(const Tiling& t, const Tile& tile, int p) {
  const int across = p % t.tile_width, rest = p / t.tile_width;
  const int image = tile.image + rest / t.tile_height, y = tile.y + rest % t.tile_height;
  const int x = tile.x + across;
  return {image, y, x, p < t.positions() && image < t.images && y < t.height && x < t.width};
}

__device__ __forceinline__ int64_t pixel_of(const Tiling& t, const Position& p) {
  return (static_cast<int64_t>(p.image) * t.height + p.y) * t.width + p.x;
}

// Of each position of a tile: the pixel in the images, -1 outside. For the whole block to read behind a
// barrier.
__device__ __forceinline__ void find_pixels(const Tiling& t, const Tile& tile, int* pixels) {
  for (int p = threadIdx.x; p < t.positions(); p += blockDim.x) {
    const Position position = position_at(t, tile, p);
    pixels[p] = position.inside ? static_cast<int>(pixel_of(t, position)) : -1;
  }
}

// How many positions of a tile lie inside.
__device__ __forceinline__ int count_inside(const Tiling& t, const Tile& tile) {
  const int images = min(t.tile_images, t.images - tile.image), rows = min(t.tile_height, t.height - tile.y);
  return images * rows * min(t.tile_width, t.width - tile.x);
}

// Four neighbouring channels.
struct alignas(16) Four {
  float v[4];
};

__device__ __forceinline__ Four zero_four() { return {{0.0f, 0.0f, 0.0f, 0.0f}}; }

__device__ __forceinline__ const Four& four_at(const float* from) {
  return *reinterpret_cast<const Four*>(from);
}
__device__ __forceinline__ Four& four_at(float* from) { return *reinterpret_cast<Four*>(from); }

// Channels [c, c + 4) of `channels`, zero beyond them. `aligned`: one access of 16 bytes (bf16: 8).
template <class T>
struct alignas(4 * sizeof(T)) FourOf {
  T v[4];
};

template <class T>
__device__ __forceinline__ Four load_four(const T* pixel, int c, int channels, bool aligned) {
  Four four;
  if (aligned && c + 4 <= channels) {
    const FourOf<T> values = *reinterpret_cast<const FourOf<T>*>(pixel + c);
#pragma unroll
    for (int i = 0; i < 4; ++i) four.v[i] = to_float(values.v[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) four.v[i] = c + i < channels ? to_float(pixel[c + i]) : 0.0f;
  }
  return four;
}

template <class T>
__device__ __forceinline__ void store_four(T* pixel, int c, int channels, bool aligned, const Four& four) {
  if (aligned && c + 4 <= channels) {
    FourOf<T> values;
#pragma unroll
    for (int i = 0; i < 4; ++i) values.v[i] = from_float<T>(four.v[i]);
    *reinterpret_cast<FourOf<T>*>(pixel + c) = values;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (c + i < channels) pixel[c + i] = from_float<T>(four.v[i]);
  }
}

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
              four[j].v[e] = activate(four[j].v[e], norm.mean[c + e], norm.rstd[c + e], relu);
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
          for (int e = 0; e < 4; ++e) sums[i].v[e] += value.v[e] * weight[kx].v[e];
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

// The tile that a branch multiplies: depthwise outputs, or one tap's pixels where there is no depthwise
// convolution. (positions, kRow)
template <class T>
__device__ __forceinline__ void fill_tile(const BranchView<T>& b, const float* window, const Window& w,
                                          const float* weights, const Tiling& t, const int* places, int tap,
                                          float* tile) {
  const int reach = b.dilation * (b.kernel / 2), pad = max(reach, b.shift);
  if (b.kernel > 0 && !b.dense) {
    depthwise(b.kernel, window, w, weights, t, pad - reach, b.dilation, b.stride,
              [&](int position, int first, int step, int c, const Four(&sums)[kRun]) {
#pragma unroll
                for (int i = 0; i < kRun; ++i)
                  if (first + i * step < t.tile_width)
                    four_at(tile + (position + first + i * step) * kRow + c) = sums[i];
              });
    return;
  }
  const int row = b.dense ? tap / b.kernel : pad + b.shift, column = b.dense ? tap % b.kernel : pad + b.shift;
  const float* first = window + (row * w.columns + column) * kDepth;
  for (int item = threadIdx.x; item < 4 * t.positions(); item += blockDim.x)
    four_at(tile + item / 4 * kRow + item % 4 * 4) =
        four_at(first + places[item / 4] * kDepth + item % 4 * 4);
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
      scale.v[i] = there ? coefficients[0] : 0.0f;
      of_raw.v[i] = there ? coefficients[b.coefficient_row] : 0.0f;
      constant.v[i] = there ? coefficients[2 * b.coefficient_row] : 0.0f;
      mean.v[i] = there ? b.mean[c + i] : 0.0f;
    }
  }
  __device__ Four operator()(const Four& g, const Four& raw) const {
    Four out;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      out.v[i] = scale.v[i] * ((g.v[i] + constant.v[i]) + of_raw.v[i] * (raw.v[i] - mean.v[i]));
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
          for (int f = 0; f < 4; ++f) w[j + f] = four.v[f];
        }
#pragma unroll
        for (int i = 0; i < kPositions; ++i)
#pragma unroll
          for (int j = 0; j < kOuts; ++j) sum[i][j] += a[i].v[e] * w[j];
      }
    }
  }
};

}  // namespace fastnas::separable_stage
