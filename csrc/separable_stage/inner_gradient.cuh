// Backward's first launch: the gradient between a branch's depthwise and its 1x1 convolution; of a dense
// convolution that of its raw outputs, which forward's kernel then brings back to its source.
//
// Roofline of one branch, N positions of C channels in and C out, s bytes an element: reads g and t, writes
// the gradient, 3 N C s bytes; 2 N C C flop. For C = 16, N = 64 x 32 x 32, float32: 12.6 MB and 34 Mflop; the
// floor on an H100 (3.0 TB/s, 67 Tflop/s) is 4.2 us by memory, 0.5 us by arithmetic. g is shared by an edge's
// branches.
#pragma once

#include "separable_stage/products.cuh"

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
      for (int e = 0; e < 4; ++e) four.values[e] = product.sum[i][j + e];
      store_four(to, first_out + column + j, b.source.channels, aligned, four);
    }
  }
}

}  // namespace fastnas::separable_stage
