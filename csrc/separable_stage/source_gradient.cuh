// Backward's last launches: the sources' gradients, gathered from all branches that read them, and the
// coefficients of normalised sources.
//
// Roofline of one branch, N positions of C channels, k x k taps, s bytes an element: reads the gradient
// between its convolutions, N C s bytes, and of each source reads it, reads and writes its gradient, 3 N C s;
// 2 N C k k flop. For C = 16, N = 64 x 32 x 32, 5x5, float32: 4.2 MB a branch and 12.6 MB a source, 52 Mflop;
// the floor on an H100 (3.0 TB/s, 67 Tflop/s) is 1.4 us a branch by memory, 0.8 us by arithmetic, and 4.2 us
// a source.
#pragma once

#include "separable_stage/windows.cuh"

namespace fastnas::separable_stage {

inline constexpr int kGatherThreads = 256;
inline constexpr int kGatherSources = 8;
inline constexpr int kGatherBranches = kMaxSourceBranches;

// A branch as its source sees it: a gradient (images, height, width, source channels) and the depthwise
// convolution to transpose; kernel 0: none.
template <class T>
struct GatherBranch {
  const T* gradient;
  const float* depthwise;
  int kernel, dilation, stride, shift, height, width;
};

template <class T>
struct GatherSource {
  SourceView<T> view;
  T* grad;
  int64_t grad_pixel;
  bool add, aligned;
  int begin, end;  // its branches
  int64_t offset;  // of its channels among the sums
  float* coefficients;
};

template <class T>
struct Gather {
  GatherSource<T> source[kGatherSources];
  GatherBranch<T> branch[kGatherBranches];
};
static_assert(sizeof(Gather<float>) <= 3600, "kernel arguments are limited to 4 KB before CUDA 12.1");

// The outputs whose windows hold a tile of the source: of (y, x) those at (y + lead - dilation tap) / stride.
template <class T>
__host__ __device__ inline int lead_of(const GatherBranch<T>& b) {
  return b.kernel > 0 ? b.dilation * (b.kernel / 2) : -b.shift;
}

template <class T>
__host__ __device__ inline int span_of(const GatherBranch<T>& b) {
  return b.kernel > 0 ? b.dilation * (b.kernel - 1) : 0;
}

template <class T>
__device__ __forceinline__ Window outputs_over(const Tiling& t, const Tile& tile, const GatherBranch<T>& b) {
  const int first = lead_of(b) - span_of(b), half = b.stride - 1;  // >> half divides by the stride, down
  const int more = b.stride == 1 ? 1 : 2;
  const int columns = (t.tile_width - 1 + span_of(b)) / b.stride + more;
  return {(tile.y + first) >> half, (tile.x + first) >> half,
          (t.tile_height - 1 + span_of(b)) / b.stride + more, columns, pitch_of(columns)};
}

// Adds what a branch of stride 2, or without a depthwise convolution, gives to each position of a tile.
template <class T>
__device__ __forceinline__ void scatter_branch(const GatherBranch<T>& b, const float* window, const Window& w,
                                               const float* weights, const Tiling& t, const Tile& at,
                                               float* tile) {
  const int taps = max(b.kernel, 1), lead = lead_of(b), half = b.stride - 1;
  for (int item = threadIdx.x; item < 4 * t.positions(); item += kGatherThreads) {
    const int c = item % 4 * 4, p = item / 4;
    const Position position = position_at(t, at, p);
    Four sum = four_at(tile + p * kRow + c);
    for (int ky = 0; ky < taps; ++ky) {
      const int y = position.y + lead - b.dilation * ky;
      if (y & half) continue;
      const int row = (position.image - at.image) * w.rows + (y >> half) - w.y;
      for (int kx = 0; kx < taps; ++kx) {
        const int x = position.x + lead - b.dilation * kx;
        if (x & half) continue;
        const Four value = four_at(window + row * w.pitch + ((x >> half) - w.x) * kDepth + c);
        Four weight = {{1.0f, 1.0f, 1.0f, 1.0f}};
        if (b.kernel > 0) weight = four_at(weights + (ky * taps + kx) * kDepth + c);
#pragma unroll
        for (int e = 0; e < 4; ++e) sum.values[e] += value.values[e] * weight.values[e];
      }
    }
    four_at(tile + p * kRow + c) = sum;
  }
}

// Blocks (tile of the source, source, kDepth of its channels).
template <class T>
__global__ void __launch_bounds__(kGatherThreads, 2)
    gather_kernel(const Gather<T> table, const Tiling tiling, int window_floats, float eps, float2* sums) {
  FASTNAS_DYNAMIC_SHARED(bytes);
  __shared__ Norm norm;
  const GatherSource<T> s = table.source[blockIdx.y];
  const int first = static_cast<int>(blockIdx.z) * kDepth, channels = s.view.channels;
  if (first >= channels) return;
  float* window = reinterpret_cast<float*>(bytes);
  float* weights = window + window_floats;
  float* tile = weights + kMaxTaps * kDepth;
  const Tile at = tile_at(tiling, blockIdx.x);
  for (int i = threadIdx.x; i < tiling.positions() * kRow; i += kGatherThreads) tile[i] = 0.0f;
  // Gradients are taken as they are.
  if (threadIdx.x < kDepth) norm.mean[threadIdx.x] = 0.0f, norm.rstd[threadIdx.x] = 1.0f;
  for (int k = s.begin; k < s.end; ++k) {
    const GatherBranch<T> b = table.branch[k];
    __syncthreads();
    if (b.kernel > 0)
      load_depthwise(b.depthwise, b.kernel * b.kernel, channels, first, b.stride == 1, weights);
    const SourceView<T> view{b.gradient, nullptr, channels, b.height, b.width, channels, channels % 4 == 0};
    const Window w = outputs_over(tiling, at, b);
    load_window(view, tiling.images, at.image, tiling.tile_images, w, first, norm, false,
                window_slack(1, b.dilation), window);
    __syncthreads();
    if (b.kernel > 0 && b.stride == 1)
      FASTNAS_FOR_DEPTHWISE(
          b.kernel, 1, b.dilation, depthwise_blocks, window, w, weights, tiling, 0, 1,
          [&](int position, int channel, float sum) { tile[position * kRow + channel] += sum; });
    else
      scatter_branch(b, window, w, weights, tiling, at, tile);
  }
  load_norm(s.view.norm, channels, first, eps, norm);
  __syncthreads();

  // Through the ReLU, and to the source.
  const int c = threadIdx.x % 4 * 4;
  Four sum = zero_four(), products = zero_four();
  for (int p = threadIdx.x / 4; p < tiling.positions(); p += kGatherThreads / 4) {
    const Position position = position_at(tiling, at, p);
    if (!position.inside) continue;
    const int64_t pixel = pixel_of(tiling, position);
    const Four x = load_four(s.view.x + pixel * s.view.pixel, first + c, channels, s.view.aligned);
    T* to = s.grad + pixel * s.grad_pixel;
    Four grad = s.add ? load_four(to, first + c, channels, s.aligned) : zero_four();
    const Four gathered = four_at(tile + p * kRow + c);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const bool on = activate(x.values[e], norm.mean[c + e], norm.rstd[c + e], true) > 0.0f;
      const float passed = on ? gathered.values[e] : 0.0f;
      grad.values[e] += passed;
      sum.values[e] += passed;
      products.values[e] += passed * (x.values[e] - norm.mean[c + e]);
    }
    store_four(to, first + c, channels, s.aligned, grad);
  }
  if (s.view.norm == nullptr) return;
  float* shares = tile;  // (kGatherThreads / 4, kDepth), twice over
  float2 total = {0.0f, 0.0f};
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    __syncthreads();
    four_at(shares + threadIdx.x / 4 * kDepth + c) = which == 0 ? sum : products;
    __syncthreads();
    if (threadIdx.x < kDepth) {
      float all = 0.0f;
      for (int i = 0; i < kGatherThreads / 4; ++i) all += shares[i * kDepth + threadIdx.x];
      (which == 0 ? total.x : total.y) = all;
    }
  }
  if (threadIdx.x < kDepth && first + static_cast<int>(threadIdx.x) < channels)
    sums[(s.offset + first + threadIdx.x) * tiling.tiles() + blockIdx.x] = total;
}

// Blocks (channel, source): BatchNorm's backward as three coefficients a channel.
template <class T>
__global__ void __launch_bounds__(kFinishThreads)
    finish_coefficients_kernel(const Gather<T> table, const Tiling tiling, double eps, bool training,
                               const float2* sums) {
  __shared__ double scratch[kFinishThreads];
  const GatherSource<T> s = table.source[blockIdx.y];
  const int c = blockIdx.x, channels = s.view.channels, tiles = tiling.tiles();
  if (c >= channels || s.view.norm == nullptr) return;
  const float2* own = sums + (s.offset + c) * tiles;
  double sum = 0, product = 0;
  for (int i = threadIdx.x; i < tiles; i += kFinishThreads) {
    sum += static_cast<double>(own[i].x);
    product += static_cast<double>(own[i].y);
  }
  sum = block_sum<kFinishThreads>(sum, scratch);
  product = block_sum<kFinishThreads>(product, scratch);
  if (threadIdx.x != 0) return;
  const double count = static_cast<double>(tiling.images) * tiling.height * tiling.width;
  const double rstd = 1.0 / sqrt(static_cast<double>(s.view.norm[channels + c]) + eps);
  s.coefficients[c] = static_cast<float>(rstd);
  s.coefficients[channels + c] = static_cast<float>(training ? -rstd * rstd * product / count : 0.0);
  s.coefficients[2 * channels + c] = static_cast<float>(training ? -sum / count : 0.0);
}

}  // namespace fastnas::separable_stage
