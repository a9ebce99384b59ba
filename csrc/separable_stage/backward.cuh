// Backward, in up to five launches: the gradient of every branch's depthwise outputs (of a dense
// convolution's raw outputs, which forward's kernel then brings back to its source); the source's gradient,
// gathered from all branches that read it; shares of the weights' gradients, and their sum; the normalised
// sources' coefficients.
//
// Roofline of one branch, N positions of C channels in and C out, k x k taps, s bytes an element: reads g, t
// and the source, writes and reads the gradient between the convolutions twice: 6 N C s bytes; 2 N C (3 k k +
// 2 C) flop. For C = 16, N = 64 x 32 x 32, 5x5, float32: 25 MB and 224 Mflop; the floor on an H100 (3.0 TB/s,
// 67 Tflop/s) is 8.4 us by memory, 3.3 us by arithmetic. g and the source are shared by a state's branches.
#pragma once

#include "separable_stage/tiles.cuh"

namespace fastnas::separable_stage {

// Blocks (tile, branch, group of source channels): gradient = W^T dt. Of a dense convolution dt itself.
template <class T, int kPositions, int kOuts>
__global__ void __launch_bounds__(kThreads, kPositions* kOuts == 64 ? 3 : 4)
    gradient_kernel(const Branches<T> table, const Tiling tiling, int lanes) {
  FASTNAS_DYNAMIC_SHARED(bytes);
  const BranchView<T> b = table.branch[blockIdx.y];
  __shared__ int pixels[kMaxPositions];
  find_pixels(tiling, tile_at(tiling, blockIdx.x), pixels);
  if (b.dense) {
    __syncthreads();
    const int c = threadIdx.x % 4 * 4;
    for (int first = static_cast<int>(blockIdx.z) * kDepth; first < b.channels;
         first += static_cast<int>(gridDim.z) * kDepth)
      for_raw_gradients(b, tiling, pixels, first + c, [&](int p, const Four& gradient) {
        if (pixels[p] >= 0)
          store_four(b.gradient + static_cast<int64_t>(pixels[p]) * b.channels, first + c, b.channels,
                     b.channels % 4 == 0, gradient);
      });
    return;
  }
  const int outs = kThreads / lanes * kOuts, first_out = static_cast<int>(blockIdx.z) * outs;
  if (first_out >= b.source.channels) return;
  float* tile = reinterpret_cast<float*>(bytes);
  float* weights = tile + lanes * kPositions * kRow;
  const int lane = threadIdx.x % lanes, column = static_cast<int>(threadIdx.x) / lanes * kOuts;
  Product<kPositions, kOuts> product;
  product.clear();
  for (int first = 0; first < b.channels; first += kDepth) {
    __syncthreads();
    load_raw_gradient(b, tiling, pixels, first, tile);
    for (int i = threadIdx.x; i < kDepth * outs; i += kThreads) {
      const int out = first + i / outs, c = first_out + i % outs;
      const bool there = out < b.channels && c < b.source.channels;
      weights[i] = there ? b.pointwise[static_cast<int64_t>(out) * b.source.channels + c] : 0.0f;
    }
    __syncthreads();
    product.add(tile, lane, lanes, weights + column, outs);
  }
  const bool aligned = b.source.channels % 4 == 0;
#pragma unroll
  for (int i = 0; i < kPositions; ++i) {
    const int p = lane + i * lanes;
    if (p >= tiling.positions() || pixels[p] < 0) continue;
    T* to = b.gradient + static_cast<int64_t>(pixels[p]) * b.source.channels;
#pragma unroll
    for (int j = 0; j < kOuts; j += 4) {
      Four four;
#pragma unroll
      for (int e = 0; e < 4; ++e) four.v[e] = product.sum[i][j + e];
      store_four(to, first_out + column + j, b.source.channels, aligned, four);
    }
  }
}

// ---------------------------------------------------------------------------- the sources' gradients

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
  return {(tile.y + first) >> half, (tile.x + first) >> half,
          (t.tile_height - 1 + span_of(b)) / b.stride + more,
          odd((t.tile_width - 1 + span_of(b)) / b.stride + more)};
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
        const Four value = four_at(window + (row * w.columns + (x >> half) - w.x) * kDepth + c);
        Four weight = {{1.0f, 1.0f, 1.0f, 1.0f}};
        if (b.kernel > 0) weight = four_at(weights + (ky * taps + kx) * kDepth + c);
#pragma unroll
        for (int e = 0; e < 4; ++e) sum.v[e] += value.v[e] * weight.v[e];
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
      depthwise(b.kernel, window, w, weights, tiling, 0, b.dilation, 1,
                [&](int position, int column, int step, int c, const Four(&run)[kRun]) {
#pragma unroll
                  for (int i = 0; i < kRun; ++i) {
                    if (column + i * step >= tiling.tile_width) continue;
                    Four& sum = four_at(tile + (position + column + i * step) * kRow + c);
#pragma unroll
                    for (int e = 0; e < 4; ++e) sum.v[e] += run[i].v[e];
                  }
                });
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
      const bool on = activate(x.v[e], norm.mean[c + e], norm.rstd[c + e], true) > 0.0f;
      const float passed = on ? gathered.v[e] : 0.0f;
      grad.v[e] += passed;
      sum.v[e] += passed;
      products.v[e] += passed * (x.v[e] - norm.mean[c + e]);
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

// ---------------------------------------------------------------------------- the weights' gradients

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
        for (int e = 0; e < 4; ++e) sums[kx].v[e] += value.v[e] * g[j].v[e];
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
          for (int j = 0; j < 4; ++j) product[half][i][j] += g.v[i] * d.v[j];
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
