// The normalised mixed sum on a GPU.
//
// Roofline of a call with S sums over K branches each, of which U are different ones among all S K, n numbers
// of s bytes in each; the floor is on an H100 at the 3.0 TB/s that a device-to-device copy was measured at,
// for the first state of a DARTS cell (S = 4, K = 7, U = 19), n = 64 x 32 x 32 x 16, float32:
//   forward   reads U n s (and S n s where it adds), writes S n s    96.5 MB (113.2)   88 Mflop   32 us (38)
//   backward  reads (U + S) n s                                      96.5 MB           92 Mflop   32 us
// About one flop per byte: bound by memory. Every thread keeps kInFlight 16-byte loads in flight. Blocks that
// read the same pixels for different sums are neighbours in the grid, so a branch that several sums share,
// and the gradient that several groups of branches need, come from memory once and from the L2 cache then.
//
// Calls with rectified branches run kernels of their own (R), so that the others keep their registers: a
// multiply- add, a comparison and a product more a number, and backward writes each such branch's g_k, n s
// more. Factors are three a channel, and backward takes kInFlight<true> branches at a time, since each has a
// sum of g_k too.
//
// No float atomics: every sum has one order, a function of the sizes alone.
#pragma once

#include <cmath>

#include "cuda/pixels.cuh"
#include "normalised_mixed_sum/normalised_mixed_sum.h"

namespace fastnas::normalised_mixed_sum {

using cuda::from_float;
using cuda::Lanes;
using cuda::load_lanes;
using cuda::store_lanes;
using cuda::to_float;
using cuda::zero_lanes;

inline constexpr int kThreads = 256;
inline constexpr int kInFlight = 4;  // branches whose loads are issued together
// In backward.
template <bool R>
inline constexpr int kProducts = R ? 2 : kInFlight;
inline constexpr int kTile = 512;  // channels at most that a block takes

// ---------------------------------------------------------------------------- forward

inline constexpr int kSums = 16;  // in a launch
template <bool R>
inline constexpr int kSummands = R ? 72 : 96;
// Scale and mean, and a rectified branch's shift, that a block holds of each of its channels: in 44 KiB,
// since 48, with what a kernel has of its own, need no asking.
template <bool R>
inline constexpr int kPerFactor = R ? 3 : 2;
template <bool R>
inline constexpr int kFactors = 44 * 1024 / 4 / kPerFactor<R>;

template <bool R>
struct Summand {
  const void* x;
  int64_t pixel;
  const float *norm, *weight;
};
template <>
struct Summand<true> {
  const void* x;
  int64_t pixel;
  const float *norm, *weight, *affine;
};

// Where a launch begins or ends amid a sum's branches, the sum so far is in `running`, (pixels, channels).
struct Sum {
  void* out;
  int64_t pixel;
  int first, count;  // of the table's summands
  float eps;
  bool add, begins, ends;
};

// The kernel's argument.
template <bool R>
struct SumTable {
  Summand<R> summands[kSummands<R>];
  Sum sums[kSums];
  int count;
  int steps;  // packs a thread
  int tile;   // channels a block
  int channels;
  int64_t pixels;
  float* running;
};
static_assert(sizeof(SumTable<false>) <= 4000 && sizeof(SumTable<true>) <= 4000,
              "kernel arguments are limited to 4 KB before sm_70 and CUDA 12.1");

// max(z, 0); a NaN stays one.
__device__ __forceinline__ float relu(float z) { return z < 0.0f ? 0.0f : z; }

// w rstd and the mean of each of a block's channels into shared memory, (count, tile) each; of a rectified
// branch its scale's rstd and the mean, and of all branches of its launch the shift.
template <bool R>
__device__ __forceinline__ void load_factors(const SumTable<R>& table, const Sum& sum, int begin, int width,
                                             float* scales, float* means) {
  for (int i = threadIdx.x; i < sum.count * width; i += kThreads) {
    const int k = i / width, c = i % width;
    const Summand<R>& b = table.summands[sum.first + k];
    float scale = b.weight == nullptr ? 1.0f : *b.weight, mean = 0.0f;
    if constexpr (R) {
      if (b.affine != nullptr) scale = b.affine[begin + c];
      float* shifts = means + sum.count * table.tile;
      shifts[k * table.tile + c] = b.affine == nullptr ? 0.0f : b.affine[table.channels + begin + c];
    }
    if (b.norm != nullptr) {
      mean = b.norm[begin + c];
      scale *= 1.0f / sqrtf(b.norm[table.channels + begin + c] + sum.eps);
    }
    scales[k * table.tile + c] = scale;
    means[k * table.tile + c] = mean;
  }
}

// Blocks (x, y): x % sums is the sum, x / sums its share of the pixels, y a tile of channels.
template <class T, int W, bool R>
__device__ __forceinline__ void add_branches(const SumTable<R>& table) {
  FASTNAS_DYNAMIC_SHARED(memory);
  const Sum& sum = table.sums[blockIdx.x % table.count];
  const int count = sum.count, begin = blockIdx.y * table.tile;
  const int width = table.channels - begin < table.tile ? table.channels - begin : table.tile;
  const unsigned across = width / W;
  float* scales = reinterpret_cast<float*>(memory);
  float* means = scales + count * table.tile;

  // The pixel and channel of this thread's packs: `first` is that of the block's first pack.
  const int64_t start = static_cast<int64_t>(blockIdx.x / table.count) * table.steps * kThreads;
  const int64_t first = start / across;
  const unsigned offset = static_cast<unsigned>(start - first * across) + threadIdx.x;
  int64_t pixel = first + offset / across;
  int channel = offset % across * W;

  Lanes<T, W> x[kInFlight];
  const auto load = [&](int k) {
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      if (k + j >= count) continue;
      const Summand<R>& b = table.summands[sum.first + k + j];
      x[j] = load_lanes<W>(static_cast<const T*>(b.x) + pixel * b.pixel + begin + channel);
    }
  };
  if (pixel < table.pixels) load(0);  // on their way while the factors are made
  load_factors(table, sum, begin, width, scales, means);
  __syncthreads();

  for (int step = 0; step < table.steps; ++step) {
    if (step > 0) {
      const unsigned at = offset + step * kThreads;
      pixel = first + at / across;
      channel = at % across * W;
    }
    if (pixel >= table.pixels) return;
    if (step > 0) load(0);
    T* out = static_cast<T*>(sum.out) + pixel * sum.pixel + begin + channel;
    float* running = table.running + pixel * table.channels + begin + channel;
    Lanes<float, W> total = zero_lanes<W>();
    if (!sum.begins) {
      total = load_lanes<W>(running);
    } else if (sum.add) {
      const Lanes<T, W> before = load_lanes<W>(out);
#pragma unroll
      for (int e = 0; e < W; ++e) total.values[e] = to_float(before.values[e]);
    }
    for (int k = 0; k < count; k += kInFlight) {
      if (k > 0) load(k);
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        if (k + j >= count) continue;
        const Lanes<float, W> scale = load_lanes<W>(scales + (k + j) * table.tile + channel);
        const Lanes<float, W> mean = load_lanes<W>(means + (k + j) * table.tile + channel);
        if constexpr (R) {
          const Summand<R>& b = table.summands[sum.first + k + j];
          const Lanes<float, W> shift = load_lanes<W>(means + (count + k + j) * table.tile + channel);
          const float weight = b.affine == nullptr || b.weight == nullptr ? 1.0f : *b.weight;
#pragma unroll
          for (int e = 0; e < W; ++e) {
            const float z = scale.values[e] * (to_float(x[j].values[e]) - mean.values[e]) + shift.values[e];
            total.values[e] += b.affine == nullptr ? z : weight * relu(z);
          }
        } else {
#pragma unroll
          for (int e = 0; e < W; ++e)  // the mean first: a large one must not take the sum's digits
            total.values[e] += scale.values[e] * (to_float(x[j].values[e]) - mean.values[e]);
        }
      }
    }
    if (sum.ends) {
      Lanes<T, W> result;
#pragma unroll
      for (int e = 0; e < W; ++e) result.values[e] = from_float<T>(total.values[e]);
      store_lanes(out, result);
    } else {
      store_lanes(running, total);
    }
  }
}

template <class T, int W>
__global__ void __launch_bounds__(kThreads) forward_kernel(SumTable<false> table) {
  add_branches<T, W>(table);
}

template <class T, int W>
__global__ void __launch_bounds__(kThreads) rectified_forward_kernel(SumTable<true> table) {
  add_branches<T, W>(table);
}

// ---------------------------------------------------------------------------- backward

inline constexpr int kJobs = 26;  // in a launch
template <bool R>
inline constexpr int kFinishes = R ? 48 : 60;  // in a launch

template <bool R>
struct Product {
  const void* x;
  int64_t pixel;
  const float* norm;
};
template <>
struct Product<true> {
  const void* x;
  int64_t pixel;
  const float *norm, *affine;
  void* passed;
  int64_t passed_pixel;
};

// Up to kProducts branches of a sum. Their products and the sum of g are rows of the workspace: (rows,
// chunks, channels), each chunk of pixels' share. With rectified branches each has a sum of its own g_k.
template <bool R>
struct Job {
  const void* grad;
  int64_t pixel;
  int64_t row, total_row;  // of the first branch; of the sum of g, -1 where another job sums it
  int count;
  float eps;
  Product<R> products[kProducts<R>];
};

// The kernel's argument.
template <bool R>
struct JobTable {
  Job<R> jobs[kJobs];
  int count;
  int chunks;
  int tile;  // packs of channels a block
  int channels;
  int64_t pixels, chunk_pixels;
  float* shares;
};
static_assert(sizeof(JobTable<false>) <= 4000 && sizeof(JobTable<true>) <= 4000,
              "kernel arguments are limited to 4 KB before sm_70 and CUDA 12.1");

// W channels' scale, mean and shift of a branch; 1, 0 and 0 for what it does not have.
template <int W>
struct Rectifier {
  Lanes<float, W> scale, mean, shift;
};

template <int W>
__device__ __forceinline__ Rectifier<W> rectifier_of(const Product<true>& b, int c, int channels, float eps) {
  Rectifier<W> r{zero_lanes<W>(), zero_lanes<W>(), zero_lanes<W>()};
#pragma unroll
  for (int e = 0; e < W; ++e) {
    r.scale.values[e] = 1.0f;
    if (b.affine != nullptr) {
      r.scale.values[e] = b.affine[c + e];
      r.shift.values[e] = b.affine[channels + c + e];
    }
    if (b.norm != nullptr) {
      r.mean.values[e] = b.norm[c + e];
      r.scale.values[e] *= 1.0f / sqrtf(b.norm[channels + c + e] + eps);
    }
  }
  return r;
}

// products_kernel, of rectified branches and others beside them; the same blocks.
template <class T, int W>
__global__ void __launch_bounds__(kThreads) rectified_products_kernel(JobTable<true> table) {
  constexpr int kCount = kProducts<true>;
  __shared__ Lanes<float, W> scratch[2 * kCount * kThreads];
  const Job<true>& job = table.jobs[blockIdx.x % table.count];
  const int chunk = blockIdx.x / table.count, packs = table.channels / W, count = job.count;
  const int rows = kThreads / table.tile, row = threadIdx.x / table.tile;
  const int pack = blockIdx.y * table.tile + threadIdx.x % table.tile, c = pack * W;
  const bool works = row < rows && pack < packs;

  Lanes<float, W> sums[2 * kCount];  // products, then totals
#pragma unroll
  for (int j = 0; j < 2 * kCount; ++j) sums[j] = zero_lanes<W>();
  if (works) {
    Rectifier<W> rectifiers[kCount];
#pragma unroll
    for (int j = 0; j < kCount; ++j)
      if (j < count) rectifiers[j] = rectifier_of<W>(job.products[j], c, table.channels, job.eps);
    const int64_t begin = chunk * table.chunk_pixels, after = begin + table.chunk_pixels;
    const int64_t end = after < table.pixels ? after : table.pixels;
    for (int64_t pixel = begin + row; pixel < end; pixel += rows) {
      const Lanes<T, W> g = load_lanes<W>(static_cast<const T*>(job.grad) + pixel * job.pixel + c);
      Lanes<T, W> x[kCount];
#pragma unroll
      for (int j = 0; j < kCount; ++j)
        if (j < count)
          x[j] = load_lanes<W>(static_cast<const T*>(job.products[j].x) + pixel * job.products[j].pixel + c);
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        if (j >= count) continue;
        const Product<true>& b = job.products[j];
        const Rectifier<W>& r = rectifiers[j];
        Lanes<T, W> passed;
#pragma unroll
        for (int e = 0; e < W; ++e) {
          const float off = to_float(x[j].values[e]) - r.mean.values[e];
          const bool passes = b.affine == nullptr || r.scale.values[e] * off + r.shift.values[e] > 0.0f;
          const float own = passes ? to_float(g.values[e]) : 0.0f;
          sums[j].values[e] += own * off;
          sums[kCount + j].values[e] += own;
          passed.values[e] = from_float<T>(own);
        }
        if (b.passed != nullptr) store_lanes(static_cast<T*>(b.passed) + pixel * b.passed_pixel + c, passed);
      }
    }
  }
  cuda::sum_pixels<kThreads>(sums, rows, table.tile, scratch);
  if (row > 0 || !works) return;
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    if (j >= count) continue;
    const auto share = [&](int64_t to) {
      return table.shares + (to * table.chunks + chunk) * table.channels + c;
    };
    store_lanes(share(job.row + j), sums[j]);
    store_lanes(share(job.total_row + j), sums[kCount + j]);
  }
}

// Blocks (x, y): x % jobs is the job, x / jobs the chunk, y a tile of channels. Leaves <g, x_k - mean_k> and
// <g, 1> of the chunk, a channel each.
template <class T, int W>
__global__ void __launch_bounds__(kThreads) products_kernel(JobTable<false> table) {
  __shared__ Lanes<float, W> scratch[(kInFlight + 1) * kThreads];
  const Job<false>& job = table.jobs[blockIdx.x % table.count];
  const int chunk = blockIdx.x / table.count, packs = table.channels / W, count = job.count;
  const int rows = kThreads / table.tile, row = threadIdx.x / table.tile;
  const int pack = blockIdx.y * table.tile + threadIdx.x % table.tile, c = pack * W;
  const bool works = row < rows && pack < packs;

  Lanes<float, W> sums[kInFlight + 1];
#pragma unroll
  for (int j = 0; j <= kInFlight; ++j) sums[j] = zero_lanes<W>();

  // The means lie where the sums will: in registers they would cost bfloat16 its second block on an SM.
  Lanes<float, W>* means = scratch + threadIdx.x % table.tile;
  for (int j = row; works && j < count; j += rows) {
    Lanes<float, W> mean = zero_lanes<W>();
    if (job.products[j].norm != nullptr)
#pragma unroll
      for (int e = 0; e < W; ++e) mean.values[e] = job.products[j].norm[c + e];
    means[j * table.tile] = mean;
  }
  __syncthreads();
  if (works) {
    const int64_t begin = chunk * table.chunk_pixels, after = begin + table.chunk_pixels;
    const int64_t end = after < table.pixels ? after : table.pixels;
    for (int64_t pixel = begin + row; pixel < end; pixel += rows) {
      const Lanes<T, W> g = load_lanes<W>(static_cast<const T*>(job.grad) + pixel * job.pixel + c);
      Lanes<T, W> x[kInFlight];
#pragma unroll
      for (int j = 0; j < kInFlight; ++j)
        if (j < count)
          x[j] = load_lanes<W>(static_cast<const T*>(job.products[j].x) + pixel * job.products[j].pixel + c);
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        if (j >= count) continue;
        const Lanes<float, W> mean = means[j * table.tile];
#pragma unroll
        for (int e = 0; e < W; ++e)
          sums[j].values[e] += to_float(g.values[e]) * (to_float(x[j].values[e]) - mean.values[e]);
      }
#pragma unroll
      for (int e = 0; e < W; ++e) sums[kInFlight].values[e] += to_float(g.values[e]);
    }
  }
  __syncthreads();
  cuda::sum_pixels<kThreads>(sums, rows, table.tile, scratch);
  if (row > 0 || !works) return;
#pragma unroll
  for (int j = 0; j <= kInFlight; ++j) {
    const int64_t to = j < kInFlight ? job.row + j : job.total_row;
    if (j < kInFlight ? j < count : to >= 0)
      store_lanes(table.shares + (to * table.chunks + chunk) * table.channels + c, sums[j]);
  }
}

// A branch's results; `row` and `total_row` as in Job.
template <bool R>
struct Finish {
  const float *norm, *weight;
  float *coefficients, *weight_grad;
  int64_t row, total_row;
  double eps;
  bool training;
};
template <>
struct Finish<true> : Finish<false> {
  const float* affine;
  float* affine_grad;
};

// The kernel's argument.
template <bool R>
struct FinishTable {
  Finish<R> branches[kFinishes<R>];
  int chunks;
  int lanes;  // channels at a time, a power of two
  int channels;
  int64_t pixels;
  const float* shares;
};
static_assert(sizeof(FinishTable<false>) <= 4000 && sizeof(FinishTable<true>) <= 4000,
              "kernel arguments are limited to 4 KB before sm_70 and CUDA 12.1");

// Halves the block's two sums until `lanes` are left, in a fixed order.
__device__ __forceinline__ void sum_segments(double (&scratch)[2][kThreads], int lanes) {
  for (int half = kThreads / 2; half >= lanes; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half)
      for (int i = 0; i < 2; ++i) scratch[i][threadIdx.x] += scratch[i][threadIdx.x + half];
  }
  __syncthreads();
}

// Block k: the coefficients a, b, c of branch k's gradient and its weight's gradient, out of the chunks'
// shares.
template <bool R>
__global__ void __launch_bounds__(kThreads) finish_kernel(FinishTable<R> table) {
  __shared__ double scratch[2][kThreads];
  const Finish<R>& b = table.branches[blockIdx.x];
  const int lane = threadIdx.x % table.lanes, segment = threadIdx.x / table.lanes;
  const int segments = kThreads / table.lanes, channels = table.channels;
  const double weight = b.weight == nullptr ? 1.0 : static_cast<double>(*b.weight);
  const double pixels = static_cast<double>(table.pixels);
  const bool through = b.training && table.pixels > 0;
  double weight_grad = 0.0;
  for (int first = 0; first < channels; first += table.lanes) {
    const int c = first + lane;
    double product = 0.0, total = 0.0;
    for (int chunk = segment; chunk < table.chunks && c < channels; chunk += segments) {
      product += static_cast<double>(table.shares[(b.row * table.chunks + chunk) * channels + c]);
      total += static_cast<double>(table.shares[(b.total_row * table.chunks + chunk) * channels + c]);
    }
    scratch[0][threadIdx.x] = product;
    scratch[1][threadIdx.x] = total;
    sum_segments(scratch, table.lanes);
    if (segment == 0 && c < channels) {
      const double variance = b.norm == nullptr ? 0.0 : static_cast<double>(b.norm[channels + c]);
      const double rstd = b.norm == nullptr ? 1.0 : 1.0 / sqrt(variance + b.eps);
      double scale = 1.0;
      if constexpr (R) {
        if (b.affine != nullptr) {
          scale = static_cast<double>(b.affine[c]);
          weight_grad += static_cast<double>(b.affine[channels + c]) * scratch[1][lane];
        }
        if (b.affine_grad != nullptr) {
          b.affine_grad[c] = static_cast<float>(weight * rstd * scratch[0][lane]);
          b.affine_grad[channels + c] = static_cast<float>(weight * scratch[1][lane]);
        }
      }
      weight_grad += scale * (rstd * scratch[0][lane]);
      if (b.coefficients != nullptr) {
        b.coefficients[c] = static_cast<float>(weight * (scale * rstd));
        b.coefficients[channels + c] =
            static_cast<float>(through ? -rstd * rstd * scratch[0][lane] / pixels : 0.0);
        b.coefficients[2 * channels + c] = static_cast<float>(through ? -scratch[1][lane] / pixels : 0.0);
      }
    }
  }
  if (b.weight_grad == nullptr) return;  // the same for the whole block
  scratch[0][threadIdx.x] = segment == 0 ? weight_grad : 0.0;
  scratch[1][threadIdx.x] = 0.0;
  sum_segments(scratch, 1);
  if (threadIdx.x == 0) *b.weight_grad = static_cast<float>(scratch[0][0]);
}

}  // namespace fastnas::normalised_mixed_sum
