// The separable stage on a GPU: what its kernels share. A block works on a tile of up to 256 positions (a few
// whole images, or a part of one) and 16 channels at a time: it brings the window of the source that the tile
// reads into shared memory, activated, with zeros around, runs a depthwise convolution over it in rows of
// kRun outputs held in registers, and multiplies the tile with the 1x1 weights, every thread holding the sums
// of a few positions and channels.
//
// No float atomics: sums over tiles are left in a workspace, one number a tile or a share of the tiles, and a
// last kernel adds them up in order, in double. How many there are depends on sizes alone.
//
// Here are the tiles; windows.cuh has the windows and depthwise convolutions, products.cuh the products.
#pragma once

#include "cuda/pixels.cuh"
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
inline constexpr int kRun = 4;              // outputs that a thread computes together, down and across
inline constexpr int kInFlight = 4;         // loads that a thread has on their way at a time
inline constexpr int kLeastPositions = 64;  // that a tile has memory for, if it has as many or not
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
using Four = cuda::Lanes<float, 4>;

__device__ __forceinline__ Four zero_four() { return cuda::zero_lanes<4>(); }

__device__ __forceinline__ const Four& four_at(const float* from) {
  return *reinterpret_cast<const Four*>(from);
}
__device__ __forceinline__ Four& four_at(float* from) { return *reinterpret_cast<Four*>(from); }

// Channels [c, c + 4) of `channels`, zero beyond them. `aligned`: one access of 16 bytes (bf16: 8).
template <class T>
__device__ __forceinline__ Four load_four(const T* pixel, int c, int channels, bool aligned) {
  Four four;
  if (aligned && c + 4 <= channels) {
    const cuda::Lanes<T, 4> lanes = cuda::load_lanes<4>(pixel + c);
#pragma unroll
    for (int e = 0; e < 4; ++e) four.values[e] = to_float(lanes.values[e]);
  } else {
#pragma unroll
    for (int e = 0; e < 4; ++e) four.values[e] = c + e < channels ? to_float(pixel[c + e]) : 0.0f;
  }
  return four;
}

template <class T>
__device__ __forceinline__ void store_four(T* pixel, int c, int channels, bool aligned, const Four& four) {
  if (aligned && c + 4 <= channels) {
    cuda::Lanes<T, 4> lanes;
#pragma unroll
    for (int e = 0; e < 4; ++e) lanes.values[e] = from_float<T>(four.values[e]);
    cuda::store_lanes(pixel + c, lanes);
  } else {
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (c + e < channels) pixel[c + e] = from_float<T>(four.values[e]);
  }
}

}  // namespace fastnas::separable_stage
