// Shared pooling on a GPU.
//
// Roofline for n numbers of s bytes at stride 1 and E edges; the floor is on an H100 at the 3.0 TB/s that a
// device-to-device copy was measured at, for both poolings with statistics, E = 4 edges with both and a
// skip-connection, n = 64 x 32 x 32 x 16, float32:
//   forward   reads x, writes average and maximum                            12.6 MB    22 Mflop    4.2 us
//   backward  reads x, both pooled and E gradients, reads and writes x_grad  37.7 MB    90 Mflop   12.6 us
// Forward: a thread slides down a column of up to four outputs and keeps the sums and maxima of the last
// three rows, so that it loads three pixels an output; the others come from the caches. Backward: a block
// takes a tile of x, leaves in shared memory what each output around it gives (the average's share, the
// maximum's gradient and the pixel that it goes to), and gathers from there: nothing of it meets memory, no
// atomics.
//
// The moments of a block of pooled numbers are those of their distances to the block's first one, in two
// passes, and blocks are merged as Chan does in double: a mean far from zero costs no digits.
#pragma once

#include <cmath>

#include "cuda/pixels.cuh"
#include "shared_pooling/shared_pooling.h"

namespace fastnas::shared_pooling {

using cuda::from_float;
using cuda::Lanes;
using cuda::load_lanes;
using cuda::store_lanes;
using cuda::to_float;
using cuda::zero_lanes;

inline constexpr int kThreads = 256;

// Outputs at most that a thread of forward takes, of which it keeps the pooled numbers in registers.
template <class T>
inline constexpr int kStrip = sizeof(T) == 2 ? 2 : 4;
inline constexpr int kShares = 4;  // a block's moments: their number, the shift, the mean and squares off it

// Of a state and its pooled images.
struct Shape {
  int height, width, out_height, out_width, channels, stride;
};

// ---------------------------------------------------------------------------- forward

// The kernel's argument. A block takes `rows` columns of one image's outputs, each `strip` of them high.
struct ForwardTable {
  Shape shape;
  int tile;    // packs of channels a block
  int strip;   // outputs a thread
  int strips;  // of an image
  int blocks;  // an image
  const void* x;
  int64_t pixel;
  void *average, *maximum;  // null: not wanted
  int64_t average_pixel, maximum_pixel;
  float *average_shares, *maximum_shares;  // (blocks, kShares, channels); null: moments not wanted
};

// How many outputs this block has.
__device__ __forceinline__ float output_count(const ForwardTable& f) {
  const int rows = kThreads / f.tile, block = blockIdx.x % f.blocks;
  const int items = f.strips * f.shape.out_width, whole = items - f.shape.out_width;
  const int begin = block * rows, end = begin + rows < items ? begin + rows : items;
  const int last = end - (begin > whole ? begin : whole);  // of these, whose strip may be shorter
  const int missing = f.strip * f.strips - f.shape.out_height;
  return static_cast<float>(f.strip * (end - begin) - (last > 0 ? last * missing : 0));
}

// The sum and the maximum of a window's three pixels in one row.
template <class T, int W>
struct WindowRow {
  Lanes<float, W> sum;
  Lanes<T, W> most;
};

template <class T>
__device__ __forceinline__ T larger(T a, T b) {
  const float wide = to_float(a);
  return wide > to_float(b) || wide != wide ? a : b;  // a NaN stays one
}

// Of row `y` of an image; `middle` is the window's middle pixel in row 0.
template <class T, int W>
__device__ __forceinline__ WindowRow<T, W> window_row(const ForwardTable& f, const T* middle, int y,
                                                      bool before, bool behind) {
  WindowRow<T, W> row;
#pragma unroll
  for (int e = 0; e < W; ++e) row.sum.values[e] = 0.0f, row.most.values[e] = from_float<T>(-INFINITY);
  if (y < 0 || y >= f.shape.height) return row;
  const T* at = middle + static_cast<int64_t>(y) * f.shape.width * f.pixel;
  const Lanes<T, W> x = load_lanes<W>(at);
  Lanes<T, W> left = x, right = x;  // where they are outside, the middle's once more is no other maximum
  if (before) left = load_lanes<W>(at - f.pixel);
  if (behind) right = load_lanes<W>(at + f.pixel);
#pragma unroll
  for (int e = 0; e < W; ++e) {
    const float l = before ? to_float(left.values[e]) : 0.0f, r = behind ? to_float(right.values[e]) : 0.0f;
    row.sum.values[e] = l + to_float(x.values[e]) + r;
    row.most.values[e] = larger(left.values[e], larger(x.values[e], right.values[e]));
  }
  return row;
}

// The moments of what the block's threads hold of one pooled image: the first `outs` of `values` each.
template <class T, int W>
__device__ __forceinline__ void store_moments(const ForwardTable& f, const Lanes<T, W> (&values)[kStrip<T>],
                                              int outs, int c, float* shares, Lanes<float, W>* scratch,
                                              Lanes<float, W>* shift) {
  const int rows = kThreads / f.tile, row = threadIdx.x / f.tile, pack = threadIdx.x % f.tile;
  const float count = output_count(f);
  if (row == 0) {
#pragma unroll
    for (int e = 0; e < W; ++e) shift[pack].values[e] = to_float(values[0].values[e]);
  }
  __syncthreads();
  const Lanes<float, W> from = shift[pack];
  Lanes<float, W> sum[1] = {zero_lanes<W>()};
#pragma unroll
  for (int j = 0; j < kStrip<T>; ++j)
#pragma unroll
    for (int e = 0; e < W; ++e)
      if (j < outs) sum[0].values[e] += to_float(values[j].values[e]) - from.values[e];
  cuda::sum_pixels<kThreads>(sum, rows, f.tile, scratch);
  if (row == 0) {
#pragma unroll
    for (int e = 0; e < W; ++e) scratch[pack].values[e] = sum[0].values[e] / count;
  }
  __syncthreads();
  const Lanes<float, W> mean = scratch[pack];
  __syncthreads();
  Lanes<float, W> squares[1] = {zero_lanes<W>()};
#pragma unroll
  for (int j = 0; j < kStrip<T>; ++j)
#pragma unroll
    for (int e = 0; e < W; ++e) {
      const float off = to_float(values[j].values[e]) - from.values[e] - mean.values[e];
      if (j < outs) squares[0].values[e] += off * off;
    }
  cuda::sum_pixels<kThreads>(squares, rows, f.tile, scratch);
  if (row > 0 || c >= f.shape.channels) return;
  float* to = shares + static_cast<int64_t>(blockIdx.x) * kShares * f.shape.channels + c;
  Lanes<float, W> counts;
#pragma unroll
  for (int e = 0; e < W; ++e) counts.values[e] = count;
  store_lanes(to, counts);
  store_lanes(to + f.shape.channels, from);
  store_lanes(to + 2 * f.shape.channels, mean);
  store_lanes(to + 3 * f.shape.channels, squares[0]);
}

// Blocks (x, y): x / blocks is the image, x % blocks a share of its outputs, y a tile of channels.
template <class T, int W>
__global__ void __launch_bounds__(kThreads, 2) forward_kernel(ForwardTable f) {
  __shared__ Lanes<float, W> scratch[kThreads], shift[kThreads];
  const Shape& s = f.shape;
  const int rows = kThreads / f.tile, row = threadIdx.x / f.tile;
  const int c = (blockIdx.y * f.tile + threadIdx.x % f.tile) * W;
  const int64_t image = blockIdx.x / f.blocks;
  const int item = blockIdx.x % f.blocks * rows + row, strip = item / s.out_width;
  const int column = item - strip * s.out_width, first = strip * f.strip;
  int outs = row < rows && strip < f.strips && c < s.channels ? s.out_height - first : 0;
  outs = outs < f.strip ? outs : f.strip;

  Lanes<T, W> averages[kStrip<T>], maxima[kStrip<T>];
  const int middle = column * s.stride;
  const bool before = middle > 0, behind = middle + 1 < s.width;
  const T* x = static_cast<const T*>(f.x) + (image * s.height * s.width + middle) * f.pixel + c;
  const int64_t out = (image * s.out_height + first) * s.out_width + column;
  WindowRow<T, W> top, centre, bottom;
#pragma unroll
  for (int j = 0; j < kStrip<T>; ++j) {
    if (j >= outs) continue;
    const int y = (first + j) * s.stride;
    if (j > 0 && s.stride == 1) {  // two rows of the last window are also in this one
      top = centre;
      centre = bottom;
    } else {
      top = window_row<T, W>(f, x, y - 1, before, behind);
      centre = window_row<T, W>(f, x, y, before, behind);
    }
    bottom = window_row<T, W>(f, x, y + 1, before, behind);
    const int high = 1 + (y > 0) + (y + 1 < s.height);
    const float share = 1.0f / static_cast<float>(high * (1 + before + behind));
#pragma unroll
    for (int e = 0; e < W; ++e) {
      averages[j].values[e] =
          from_float<T>((top.sum.values[e] + centre.sum.values[e] + bottom.sum.values[e]) * share);
      maxima[j].values[e] = larger(top.most.values[e], larger(centre.most.values[e], bottom.most.values[e]));
    }
    const int64_t pixel = out + static_cast<int64_t>(j) * s.out_width;
    if (f.average != nullptr)
      store_lanes(static_cast<T*>(f.average) + pixel * f.average_pixel + c, averages[j]);
    if (f.maximum != nullptr)
      store_lanes(static_cast<T*>(f.maximum) + pixel * f.maximum_pixel + c, maxima[j]);
  }
  if (f.average_shares != nullptr)
    store_moments<T, W>(f, averages, outs, c, f.average_shares, scratch, shift);
  if (f.maximum_shares != nullptr) store_moments<T, W>(f, maxima, outs, c, f.maximum_shares, scratch, shift);
}

inline constexpr int kNorms = 200;   // in a launch
inline constexpr int kChannels = 4;  // that a block of the second launch takes

// The kernel's argument: the moments of both pooled images, from the blocks' shares to norms, of which the
// first `averages` are the average's.
struct NormTable {
  ForwardTable f;
  int64_t images;
  int averages, count;
  float* norms[kNorms];
};
static_assert(sizeof(NormTable) <= 4000, "kernel arguments are limited to 4 KB before sm_70 and CUDA 12.1");

// Blocks (x, y): kChannels channels from kChannels x on; y is 0 for the average, 1 for the maximum.
__global__ void __launch_bounds__(kThreads) norms_kernel(NormTable table) {
  __shared__ double scratch[kThreads];
  const ForwardTable& f = table.f;
  const Shape& s = f.shape;
  const float* shares = blockIdx.y == 0 ? f.average_shares : f.maximum_shares;
  const int begin = blockIdx.y == 0 ? 0 : table.averages,
            end = blockIdx.y == 0 ? table.averages : table.count;
  if (begin == end) return;
  const int lane = threadIdx.x % kChannels, segment = threadIdx.x / kChannels;
  const int c = blockIdx.x * kChannels + lane;
  const int64_t blocks = c < s.channels ? table.images * f.blocks : 0;
  const double total = static_cast<double>(table.images) * s.out_height * s.out_width;
  double mean = 0.0, squares = 0.0;
#pragma unroll
  for (int pass = 0; pass < 2; ++pass) {
    double sum = 0.0;
    for (int64_t block = segment; block < blocks; block += kThreads / kChannels) {
      const float* from = shares + block * kShares * s.channels + c;
      const double count = static_cast<double>(from[0]);
      const double own = static_cast<double>(from[s.channels]) + static_cast<double>(from[2 * s.channels]);
      if (pass == 0)
        sum += count * own;
      else
        sum += static_cast<double>(from[3 * s.channels]) + count * (own - mean) * (own - mean);
    }
    scratch[threadIdx.x] = sum;
    for (int half = kThreads / 2; half >= kChannels; half /= 2) {
      __syncthreads();
      if (threadIdx.x < half) scratch[threadIdx.x] += scratch[threadIdx.x + half];
    }
    __syncthreads();
    (pass == 0 ? mean : squares) = scratch[lane] / total;
    __syncthreads();
  }
  if (segment > 0 || c >= s.channels) return;
  for (int k = begin; k < end; ++k) {
    table.norms[k][c] = static_cast<float>(mean);
    table.norms[k][s.channels + c] = static_cast<float>(squares);
  }
}

// ---------------------------------------------------------------------------- backward

inline constexpr int kEdges = 16;     // in a launch
inline constexpr int kSlice = 16;     // channels at most that a block takes
inline constexpr int kTerms = 8;      // numbers of a channel of an edge: a, b, c and the mean of two branches
inline constexpr int kTogether = 4;   // edges whose loads are issued together
inline constexpr int kNowhere = 255;  // a maximum that is none of its pixels: NaN

// The kernel's argument.
struct BackwardTable {
  Shape shape;
  int high, wide;              // pixels of x in a tile
  int tiles_high, tiles_wide;  // of an image
  int slices;                  // of the channels
  int outputs;                 // at most around a tile
  int edges;
  bool average, maximum, skips;  // whether any edge has them
  const void* x;
  int64_t pixel;
  const void *averages, *maxima;
  int64_t average_pixel, maximum_pixel;
  void* x_grad;
  int64_t x_grad_pixel;
  Edge edge[kEdges];
};
static_assert(sizeof(BackwardTable) <= 4000,
              "kernel arguments are limited to 4 KB before sm_70 and CUDA 12.1");

// The pixels that a tile's outputs give: what each pixel of a window gets of the average's gradient, the
// maximum's gradient and the one pixel, row by row, that gets it, and a skip-connection's own. Behind the
// edges' terms, (edges, kTerms, kSlice).
template <int W>
struct Given {
  Lanes<float, W>*share, *most, *skip;
  Lanes<uint8_t, W>* tap;

  __device__ Given(const BackwardTable& b, float* memory, int packs) {
    const int count = b.outputs * packs;
    share = reinterpret_cast<Lanes<float, W>*>(memory + b.edges * kTerms * kSlice);
    most = share + (b.average ? count : 0);
    skip = most + (b.maximum ? count : 0);
    tap = reinterpret_cast<Lanes<uint8_t, W>*>(skip + (b.skips ? count : 0));
  }
};

// Adds a (g + b (pooled - mean) + c), or w g.
template <class T, int W>
__device__ __forceinline__ void add_branch(const Branch& branch, const float* terms, const Lanes<T, W>& g,
                                           const Lanes<T, W>& pooled, Lanes<float, W>& sum) {
  if (branch.coefficients != nullptr) {
    const Lanes<float, W> a = load_lanes<W>(terms), b = load_lanes<W>(terms + kSlice);
    const Lanes<float, W> c = load_lanes<W>(terms + 2 * kSlice), mean = load_lanes<W>(terms + 3 * kSlice);
#pragma unroll
    for (int e = 0; e < W; ++e)
      sum.values[e] += a.values[e] * ((to_float(g.values[e]) + c.values[e]) +
                                      b.values[e] * (to_float(pooled.values[e]) - mean.values[e]));
  } else if (branch.weight != nullptr) {
    const float weight = *static_cast<const float*>(branch.weight);
#pragma unroll
    for (int e = 0; e < W; ++e) sum.values[e] += weight * to_float(g.values[e]);
  }
}

// The edges' numbers of the channels from `begin` into shared memory.
__device__ __forceinline__ void load_terms(const BackwardTable& b, int begin, float* terms) {
  for (int i = threadIdx.x; i < b.edges * kTerms * kSlice; i += kThreads) {
    const int c = begin + i % kSlice, term = i / kSlice % kTerms, channels = b.shape.channels;
    const Edge& edge = b.edge[i / (kSlice * kTerms)];
    const Branch& branch = term < kTerms / 2 ? edge.average : edge.maximum;
    if (branch.coefficients == nullptr || c >= channels) continue;
    const int row = term % (kTerms / 2);
    terms[i] = row < 3 ? static_cast<const float*>(branch.coefficients)[row * channels + c]
                       : static_cast<const float*>(branch.mean)[c];
  }
}

// The first pixel of the window around (y, x) that has the maximum, a channel each.
template <class T, int W>
__device__ __forceinline__ Lanes<uint8_t, W> find_maxima(const BackwardTable& b, const T* image, int y, int x,
                                                         const Lanes<T, W>& most) {
  Lanes<uint8_t, W> tap;
#pragma unroll
  for (int e = 0; e < W; ++e) tap.values[e] = kNowhere;
#pragma unroll
  for (int k = 8; k >= 0; --k) {  // the first wins
    const int row = y - 1 + k / 3, column = x - 1 + k % 3;
    if (row < 0 || row >= b.shape.height || column < 0 || column >= b.shape.width) continue;
    const Lanes<T, W> value =
        load_lanes<W>(image + (static_cast<int64_t>(row) * b.shape.width + column) * b.pixel);
#pragma unroll
    for (int e = 0; e < W; ++e)
      if (to_float(value.values[e]) == to_float(most.values[e])) tap.values[e] = k;
  }
  return tap;
}

// x goes over slices of channels, tiles of an image's columns, of its rows, and images.
template <class T, int W>
__global__ void __launch_bounds__(kThreads, 2) backward_kernel(BackwardTable b) {
  FASTNAS_DYNAMIC_SHARED(memory);
  float* terms = reinterpret_cast<float*>(memory);
  const Shape& s = b.shape;
  int block = blockIdx.x;
  const int begin = block % b.slices * kSlice;
  block /= b.slices;
  const int x0 = block % b.tiles_wide * b.wide;
  block /= b.tiles_wide;
  const int y0 = block % b.tiles_high * b.high;
  const int64_t image = block / b.tiles_high;
  const int x1 = x0 + b.wide < s.width ? x0 + b.wide : s.width;
  const int y1 = y0 + b.high < s.height ? y0 + b.high : s.height;
  // Outputs whose windows meet the tile.
  const int stride = s.stride;
  const int top = y0 > 0 ? (y0 + stride - 2) / stride : 0, left = x0 > 0 ? (x0 + stride - 2) / stride : 0;
  const int bottom = y1 / stride < s.out_height ? y1 / stride + 1 : s.out_height;
  const int right = x1 / stride < s.out_width ? x1 / stride + 1 : s.out_width;
  const int across = right - left, given_count = across > 0 && bottom > top ? across * (bottom - top) : 0;

  const int channels = s.channels - begin < kSlice ? s.channels - begin : kSlice;
  const int packs = channels / W, pack = threadIdx.x % packs, c = begin + pack * W;
  const int rows = kThreads / packs, row = threadIdx.x / packs;
  const Given<W> given(b, terms, packs);
  load_terms(b, begin, terms);
  __syncthreads();

  const T* x = static_cast<const T*>(b.x) + image * s.height * s.width * b.pixel + c;
  for (int i = row; i < given_count && row < rows; i += rows) {
    const int y = top + i / across, column = left + i % across, at = i * packs + pack;
    const int64_t pixel = (image * s.out_height + y) * s.out_width + column;
    Lanes<T, W> average = {}, maximum = {};
    if (b.average && b.averages != nullptr)
      average = load_lanes<W>(static_cast<const T*>(b.averages) + pixel * b.average_pixel + c);
    if (b.maximum) {
      maximum = load_lanes<W>(static_cast<const T*>(b.maxima) + pixel * b.maximum_pixel + c);
      given.tap[at] = find_maxima<T, W>(b, x, y * stride, column * stride, maximum);
    }
    Lanes<float, W> average_grad = zero_lanes<W>(), most_grad = zero_lanes<W>(), skip = zero_lanes<W>();
    for (int first = 0; first < b.edges; first += kTogether) {
      Lanes<T, W> g[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; ++j)
        if (first + j < b.edges)
          g[j] = load_lanes<W>(static_cast<const T*>(b.edge[first + j].grad) +
                               pixel * b.edge[first + j].grad_pixel + c);
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        if (first + j >= b.edges) continue;
        const Edge& edge = b.edge[first + j];
        const float* own = terms + (first + j) * kTerms * kSlice + pack * W;
        add_branch(edge.average, own, g[j], average, average_grad);
        add_branch(edge.maximum, own + kTerms / 2 * kSlice, g[j], maximum, most_grad);
        if (edge.skip_weight == nullptr) continue;
        const float weight = *static_cast<const float*>(edge.skip_weight);
#pragma unroll
        for (int e = 0; e < W; ++e) skip.values[e] += weight * to_float(g[j].values[e]);
      }
    }
    if (b.average) {
      const int high = 1 + (y > 0) + (y * stride + 1 < s.height);
      const int wide = 1 + (column > 0) + (column * stride + 1 < s.width);
      const float share = 1.0f / static_cast<float>(high * wide);
#pragma unroll
      for (int e = 0; e < W; ++e) average_grad.values[e] *= share;
      given.share[at] = average_grad;
    }
    if (b.maximum) given.most[at] = most_grad;
    if (b.skips) given.skip[at] = skip;
  }
  __syncthreads();

  const int width = x1 - x0, pixels = width * (y1 - y0);
  for (int i = row; i < pixels && row < rows; i += rows) {
    const int y = y0 + i / width, column = x0 + i % width;
    T* to = static_cast<T*>(b.x_grad) + ((image * s.height + y) * s.width + column) * b.x_grad_pixel + c;
    const Lanes<T, W> before = load_lanes<W>(to);
    Lanes<float, W> sum = zero_lanes<W>();
    // The outputs around: `tap` is where this pixel lies in the first one's window.
    const int first_y = y > 0 ? (y + stride - 2) / stride : 0;
    const int first_x = column > 0 ? (column + stride - 2) / stride : 0;
    const int tap = (y + 1 - first_y * stride) * 3 + column + 1 - first_x * stride;
    const int corner = (first_y - top) * across + first_x - left;
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      if (first_y + j >= s.out_height || (first_y + j) * stride - 1 > y) continue;
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        if (first_x + k >= s.out_width || (first_x + k) * stride - 1 > column) continue;
        const int at = (corner + j * across + k) * packs + pack;
        if (b.average) {
          const Lanes<float, W> share = given.share[at];
#pragma unroll
          for (int e = 0; e < W; ++e) sum.values[e] += share.values[e];
        }
        if (b.maximum) {
          const Lanes<float, W> most = given.most[at];
          const Lanes<uint8_t, W> its = given.tap[at];
#pragma unroll
          for (int e = 0; e < W; ++e)
            if (its.values[e] == tap - stride * (3 * j + k)) sum.values[e] += most.values[e];
        }
      }
    }
    if (b.skips) {  // of stride 1
      const Lanes<float, W> skip = given.skip[((y - top) * across + column - left) * packs + pack];
#pragma unroll
      for (int e = 0; e < W; ++e) sum.values[e] += skip.values[e];
    }
    Lanes<T, W> after;
#pragma unroll
    for (int e = 0; e < W; ++e) after.values[e] = from_float<T>(to_float(before.values[e]) + sum.values[e]);
    store_lanes(to, after);
  }
}

}  // namespace fastnas::shared_pooling
