// Forward: raw outputs, and each tile's mean and sum of squares about it; then the batch's mean and variance.
//
// Roofline of one branch, N positions of C channels in and C out, k x k taps, s bytes an element:
//   reads and writes 2 N C s bytes, 2 N C (k k + C) flop. For C = 16, N = 64 x 32 x 32, 5x5, float32: 8.4 MB
//   and 86 Mflop; the floor on an H100 (3.0 TB/s, 67 Tflop/s) is 2.8 us by memory, 1.3 us by arithmetic. All
//   sixteen branches of a state read it from the second-level cache but once.
// What holds it back before either is the issue of instructions: on sm_90 about 570 for the 400 multiply-adds
// of a block of 4 x 4 outputs of a 5x5 kernel (270 for the 144 of a 3x3 one), 610 for 512 of the product.
#pragma once

#include "separable_stage/products.cuh"

namespace fastnas::separable_stage {

// Blocks (tile, branch, group of output channels).
template <class T, int kPositions, int kOuts>
__global__ void __launch_bounds__(kThreads, 3)
    forward_kernel(const Branches<T> table, const Tiling tiling, int lanes, int window_floats, float eps,
                   float2* moments) {
  FASTNAS_DYNAMIC_SHARED(bytes);
  __shared__ Norm norm;
  __shared__ int places[kMaxPositions];
  const BranchView<T> b = table.branch[blockIdx.y];
  const int outs = kThreads / lanes * kOuts, first_out = static_cast<int>(blockIdx.z) * outs;
  if (first_out >= b.channels) return;
  const int taps = b.kernel * b.kernel, products = b.dense ? taps : 1;
  float* window = reinterpret_cast<float*>(bytes);
  float* tile = window + window_floats;
  float* depthwise_weights = tile + lanes * kPositions * kRow;
  float* pointwise_weights = depthwise_weights + kMaxTaps * kDepth;

  const Tile at = tile_at(tiling, blockIdx.x);
  const Window w = window_of(tiling, at, b);
  const int lane = threadIdx.x % lanes, column = static_cast<int>(threadIdx.x) / lanes * kOuts;
  if (b.kernel == 0 || b.dense) find_places(tiling, w, b.stride, places);
  Product<kPositions, kOuts> product;
  product.clear();
  for (int first = 0; first < b.source.channels; first += kDepth) {
    load_norm(b.source.norm, b.source.channels, first, eps, norm);
    if (b.kernel > 0 && !b.dense)
      load_depthwise(b.depthwise, taps, b.source.channels, first, false, depthwise_weights);
    __syncthreads();
    load_window(b.source, tiling.images, at.image, tiling.tile_images, w, first, norm, b.relu,
                window_slack(b.stride, b.dilation), window);
    for (int tap = 0; tap < products; ++tap) {
      __syncthreads();
      for (int i = threadIdx.x; i < kDepth * outs; i += kThreads) {
        const int c = first + i / outs, out = first_out + i % outs;
        int64_t from = (static_cast<int64_t>(out) * b.source.channels + c) * products + tap;
        if (b.transposed) from = (static_cast<int64_t>(c) * b.channels + out) * products + products - 1 - tap;
        pointwise_weights[i] = c < b.source.channels && out < b.channels ? b.pointwise[from] : 0.0f;
      }
      fill_tile(b, window, w, depthwise_weights, tiling, places, tap, tile);
      __syncthreads();
      product.add(tile, lane, lanes, pointwise_weights + column, outs);
    }
  }

  bool inside[kPositions];
#pragma unroll
  for (int i = 0; i < kPositions; ++i) {
    const Position position = position_at(tiling, at, lane + i * lanes);
    inside[i] = position.inside;
    if (!position.inside) continue;
    T* to = b.raw + pixel_of(tiling, position) * b.raw_pixel;
#pragma unroll
    for (int j = 0; j < kOuts; j += 4) {
      Four four;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        four.values[e] = product.sum[i][j + e];
        // Statistics are those of what is stored.
        product.sum[i][j + e] = to_float(from_float<T>(four.values[e]));
      }
      store_four(to, first_out + column + j, b.channels, b.raw_aligned, four);
    }
  }
  if (moments == nullptr || b.mean == nullptr) return;

  // Of this tile: the mean of each channel, then the sum of squares about it, each over the lanes in order.
  float* shares = tile;  // (lanes, outs)
  float* means = depthwise_weights;
  const float count = static_cast<float>(count_inside(tiling, at));
#pragma unroll 1
  for (int power = 1; power <= 2; ++power) {
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kOuts; ++j) {
      float share = 0.0f;
#pragma unroll
      for (int i = 0; i < kPositions; ++i) {
        if (!inside[i]) continue;
        const float off = power == 1 ? product.sum[i][j] : product.sum[i][j] - means[column + j];
        share += power == 1 ? off : off * off;
      }
      shares[lane * outs + column + j] = share;
    }
    __syncthreads();
    for (int out = threadIdx.x; out < outs; out += kThreads) {
      float sum = 0.0f;
      for (int l = 0; l < lanes; ++l) sum += shares[l * outs + out];
      if (power == 1)
        means[out] = sum / count;
      else if (first_out + out < b.channels)
        moments[(b.offset + first_out + out) * tiling.tiles() + blockIdx.x] = {means[out], sum};
    }
  }
}

// Blocks (channel, branch): mean and biased variance over all tiles (Chan, Golub and LeVeque's update, all
// tiles at once: the mean first, then every tile's squares about it).
template <class T>
__global__ void __launch_bounds__(kFinishThreads)
    finish_moments_kernel(const Branches<T> table, const Tiling tiling, const float2* moments) {
  __shared__ double scratch[kFinishThreads];
  const BranchView<T> b = table.branch[blockIdx.y];
  const int c = blockIdx.x, tiles = tiling.tiles();
  if (c >= b.channels || b.mean == nullptr) return;
  const float2* own = moments + (b.offset + c) * tiles;
  const double count = static_cast<double>(tiling.images) * tiling.height * tiling.width;
  double sum = 0;
  for (int i = threadIdx.x; i < tiles; i += kFinishThreads)
    sum += static_cast<double>(own[i].x) * count_inside(tiling, tile_at(tiling, i));
  const double mean = block_sum<kFinishThreads>(sum, scratch) / count;
  double squares = 0;
  for (int i = threadIdx.x; i < tiles; i += kFinishThreads) {
    const double off = static_cast<double>(own[i].x) - mean;
    squares += static_cast<double>(own[i].y) + off * off * count_inside(tiling, tile_at(tiling, i));
  }
  const double variance = block_sum<kFinishThreads>(squares, scratch) / count;
  if (threadIdx.x == 0) {
    b.mean[c] = static_cast<float>(mean);
    b.variance[c] = static_cast<float>(variance);
  }
}

}  // namespace fastnas::separable_stage
