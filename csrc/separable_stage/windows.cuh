// What a tile reads of the source, in shared memory, and depthwise convolutions over it.
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
// shared memory (tile images, rows, columns, kDepth), rows `pitch` floats apart.
struct Window {
  int y, x, rows, columns, pitch;
};

// Pixels below one another, four rows apart, begin in different halves of the banks: so do the blocks of
// outputs that the two halves of a warp work on.
__host__ __device__ inline int pitch_of(int columns) { return (columns + columns % 2) * kDepth + 4; }

// Whoever reads a whole run of outputs at a row's end reads beyond the window: so many floats behind it. What
// comes of them is left out, or multiplied with zero.
__host__ __device__ constexpr int window_slack(int stride, int dilation) {
  return kRun * stride * dilation * kDepth;
}

// Of each position of a tile: where its first pixel lies in the window.
__device__ __forceinline__ void find_places(const Tiling& t, const Window& w, int stride, int* places) {
  for (int p = threadIdx.x; p < t.positions(); p += blockDim.x) {
    const int x = p % t.tile_width, rest = p / t.tile_width;
    const int line = rest / t.tile_height * w.rows + rest % t.tile_height * stride;
    places[p] = line * w.pitch + x * stride * kDepth;
  }
}

// What the outputs of a tile read of the source.
template <class T>
__device__ __forceinline__ Window window_of(const Tiling& t, const Tile& tile, const BranchView<T>& b) {
  const int reach = b.dilation * (b.kernel / 2), pad = max(reach, b.shift);
  const int columns = (t.tile_width - 1) * b.stride + 1 + 2 * pad;
  return {tile.y * b.stride - pad, tile.x * b.stride - pad, (t.tile_height - 1) * b.stride + 1 + 2 * pad,
          columns, pitch_of(columns)};
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
          four_at(to + (i * w.rows + row + j) * w.pitch + column * kDepth + c) = four[j];
        }
      }
    }
  }
  // Between the rows, too: what is left out is a number all the same.
  const int lines = tile_images * w.rows;
  for (int line = threadIdx.x; line < lines; line += blockDim.x)
    for (int i = w.columns * kDepth; i < w.pitch; i += 4) four_at(to + line * w.pitch + i) = zero_four();
  for (int i = threadIdx.x; i < slack; i += blockDim.x) to[lines * w.pitch + i] = 0.0f;
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

// The outputs of a depthwise convolution in blocks of kRun x kRun: with dilation 2 and stride 1 outputs that
// are two apart share what they read, and make up a block.
class Blocks {
 public:
  __device__ Blocks(const Tiling& t, int stride, int dilation)
      : step_(stride == 1 ? dilation : 1),
        down_(blocks_over(t.tile_height)),
        rows_(t.tile_images * down_),
        count_(rows_ * blocks_over(t.tile_width)) {}

  // A block's image in the tile, first row and first column there.
  struct Block {
    int image, y, x;
  };
  __device__ Block operator[](int i) const {
    // The two that a warp has lie below one another, or side by side where they are interlaced.
    const int odd = i & (step_ - 1), rest = i >> (step_ - 1);
    const int across = rest / rows_, row = rest - across * rows_;
    const int image = row / down_, down = row - image * down_;
    const int y = (down & (step_ - 1)) + (down >> (step_ - 1)) * kRun * step_;
    return {image, y, odd + across * kRun * step_};
  }
  __device__ int count() const { return count_; }
  __device__ int step() const { return step_; }  // from output to output

 private:
  __device__ int blocks_over(int length) const {
    return step_ * (((length + step_ - 1) / step_ + kRun - 1) / kRun);
  }
  int step_, down_, rows_, count_;
};

// Calls use(tap, y, x, value) for each output (y, x) of a block and each tap of kRows rows of a kernel, from
// `first_row` on, and kColumns columns; taps are kDilation apart, and outputs kAdvance taps. A pixel is read
// once.
template <int kRows, int kColumns, int kAdvance, int kDilation, class Use>
__device__ __forceinline__ void for_taps(const float* window, const Window& w, const Blocks::Block& block,
                                         int channel, int offset, int stride, int first_row, const Use& use) {
  constexpr int kDown = (kRun - 1) * kAdvance + kRows, kAcross = (kRun - 1) * kAdvance + kColumns;
  const int first = block.y * stride + offset + first_row * kDilation, last = w.rows - 1 - first;
  const float* from =
      window + (block.image * w.rows + first) * w.pitch + (block.x * stride + offset) * kDepth + channel;
#pragma unroll
  for (int row = 0; row < kDown; ++row) {
    // Rows below the window are read by outputs alone that are left out.
    const float* line = from + min(row * kDilation, last) * w.pitch;
    float value[kAcross];
#pragma unroll
    for (int column = 0; column < kAcross; ++column) value[column] = line[column * kDilation * kDepth];
#pragma unroll
    for (int y = 0; y < kRun; ++y) {
      const int ky = row - kAdvance * y;
      if (ky < 0 || ky >= kRows) continue;
#pragma unroll
      for (int kx = 0; kx < kColumns; ++kx)
#pragma unroll
        for (int x = 0; x < kRun; ++x) use(ky * kColumns + kx, y, x, value[x * kAdvance + kx]);
    }
  }
}

// Calls emit(position, channel, sum) for all outputs of a tile. A thread has one channel, and its weights in
// registers.
template <int K, int kAdvance, int kDilation, class Emit>
__device__ __forceinline__ void depthwise_blocks(const float* window, const Window& w, const float* weights,
                                                 const Tiling& t, int offset, int stride, const Emit& emit) {
  const Blocks blocks(t, stride, kDilation);
  const int channel = static_cast<int>(threadIdx.x) % kDepth;
  // A large kernel goes a row at a time: no more code, and no more weights in registers.
  constexpr bool kLarge = K == 7;
  constexpr int kRows = kLarge ? 1 : K;
  float kept[kRows * K];
#pragma unroll
  for (int tap = 0; tap < kRows * K && !kLarge; ++tap) kept[tap] = weights[tap * kDepth + channel];
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x) / kDepth; i < blocks.count(); i += blockDim.x / kDepth) {
    const Blocks::Block block = blocks[i];
    float sum[kRun][kRun] = {};
#pragma unroll 1
    for (int first_row = 0; first_row < K; first_row += kRows) {
#pragma unroll
      for (int kx = 0; kx < K && kLarge; ++kx) kept[kx] = weights[(first_row * K + kx) * kDepth + channel];
      for_taps<kRows, K, kAdvance, kDilation>(
          window, w, block, channel, offset, stride, first_row,
          [&](int tap, int y, int x, float value) { sum[y][x] += value * kept[tap]; });
    }
#pragma unroll
    for (int y = 0; y < kRun; ++y) {
      const int row = block.y + y * blocks.step();
      if (row >= t.tile_height) continue;
      const int first = (block.image * t.tile_height + row) * t.tile_width;
#pragma unroll
      for (int x = 0; x < kRun; ++x) {
        const int column = block.x + x * blocks.step();
        if (column < t.tile_width) emit(first + column, channel, sum[y][x]);
      }
    }
  }
}

// Calls FUNCTION<K, kAdvance, kDilation>(...) for the kernel, the stride and the dilation that a branch has.
#define FASTNAS_FOR_DEPTHWISE_K(K, stride, dilation, FUNCTION, ...) \
  (dilation) == 1 && (stride) == 1 ? FUNCTION<K, 1, 1>(__VA_ARGS__) \
  : (dilation) == 1                ? FUNCTION<K, 2, 1>(__VA_ARGS__) \
                                   : FUNCTION<K, 1, 2>(__VA_ARGS__)
#define FASTNAS_FOR_DEPTHWISE(kernel, stride, dilation, FUNCTION, ...)                  \
  (kernel) == 3   ? FASTNAS_FOR_DEPTHWISE_K(3, stride, dilation, FUNCTION, __VA_ARGS__) \
  : (kernel) == 5 ? FASTNAS_FOR_DEPTHWISE_K(5, stride, dilation, FUNCTION, __VA_ARGS__) \
                  : FASTNAS_FOR_DEPTHWISE_K(7, stride, dilation, FUNCTION, __VA_ARGS__)

}  // namespace fastnas::separable_stage
