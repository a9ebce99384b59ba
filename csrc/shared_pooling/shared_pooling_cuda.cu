// Shared pooling's launchers: raw pointers, sizes, the stream last. They neither allocate nor synchronise.
#include <algorithm>

#include "shared_pooling/shared_pooling_kernel.cuh"

namespace fastnas::shared_pooling {
namespace {

using cuda::BFloat16;
using cuda::is_packed;
using cuda::kPack;

Shape shape_of(const Params& p) {
  // A stride beyond the image is as good as one that just leaves it.
  const int64_t stride = std::min(p.stride, std::max(p.height, p.width) + 1);
  return {static_cast<int>(p.height),    static_cast<int>(p.width),    static_cast<int>(p.out_height),
          static_cast<int>(p.out_width), static_cast<int>(p.channels), static_cast<int>(stride)};
}

// Whether all images can be accessed in packs.
bool all_packed(const Params& p) {
  const int64_t element = size_of(p.dtype);
  const auto packed = [&](const void* data, int64_t pixel) {
    return data == nullptr || is_packed(data, pixel, element);
  };
  return p.channels * element % 16 == 0 && packed(p.x, p.pixel) && packed(p.average, p.average_pixel) &&
         packed(p.maximum, p.maximum_pixel) && packed(p.x_grad, p.x_grad_pixel) &&
         std::all_of(p.edges.begin(), p.edges.end(),
                     [&](const Edge& e) { return packed(e.grad, e.grad_pixel); });
}

// ---------------------------------------------------------------------------- forward

constexpr int64_t kMostTile = 64;  // packs of channels a block

// How blocks share forward's work, for packs of W channels. A function of the sizes alone, so that the order
// of every sum is.
ForwardTable forward_table(const Params& p, int64_t width) {
  ForwardTable f{};
  f.shape = shape_of(p);
  f.tile = static_cast<int>(std::min(p.channels / width, kMostTile));
  const int64_t rows = kThreads / f.tile, tiles = (p.channels / width + f.tile - 1) / f.tile;
  // The higher a strip, the fewer pixels are loaded twice; but two blocks for each of some 130 SMs.
  for (f.strip = p.dtype == Dtype::float32 ? kStrip<float> : kStrip<BFloat16>;; f.strip /= 2) {
    f.strips = static_cast<int>((p.out_height + f.strip - 1) / f.strip);
    f.blocks = static_cast<int>((f.strips * p.out_width + rows - 1) / rows);
    if (f.strip == 1 || p.images * f.blocks * tiles >= 256) break;
  }
  f.x = p.x, f.pixel = p.pixel;
  f.average = p.average, f.average_pixel = p.average_pixel;
  f.maximum = p.maximum, f.maximum_pixel = p.maximum_pixel;
  return f;
}

int64_t pack_width(const Params& p) { return all_packed(p) ? 16 / size_of(p.dtype) : 1; }

// Floats of one pooled image's moments.
int64_t share_count(const Params& p, const ForwardTable& f) {
  return p.images * f.blocks * kShares * p.channels;
}

template <class T, int W>
cudaError_t forward(const Params& p, float* workspace, cudaStream_t stream) {
  if (p.average == nullptr && p.maximum == nullptr) return cudaSuccess;
  ForwardTable f = forward_table(p, W);
  if (!p.average_norms.empty()) f.average_shares = workspace;
  if (!p.maximum_norms.empty())
    f.maximum_shares = workspace + (p.average_norms.empty() ? 0 : share_count(p, f));
  const auto tiles = static_cast<unsigned>((p.channels / W + f.tile - 1) / f.tile);
  const dim3 blocks(static_cast<unsigned>(p.images * f.blocks), tiles);
  FASTNAS_LAUNCH((forward_kernel<T, W>), blocks, kThreads, stream, f);
  size_t averages = 0, maxima = 0;  // norms that are done
  while (averages < p.average_norms.size() || maxima < p.maximum_norms.size()) {
    NormTable table{f, p.images, 0, 0, {}};
    while (averages < p.average_norms.size() && table.count < kNorms)
      table.norms[table.count++] = static_cast<float*>(p.average_norms[averages++]);
    table.averages = table.count;
    while (maxima < p.maximum_norms.size() && table.count < kNorms)
      table.norms[table.count++] = static_cast<float*>(p.maximum_norms[maxima++]);
    const dim3 groups(static_cast<unsigned>((p.channels + kChannels - 1) / kChannels), 2);
    FASTNAS_LAUNCH(norms_kernel, groups, kThreads, stream, table);
  }
  return cudaGetLastError();
}

// ---------------------------------------------------------------------------- backward

constexpr int kHigh = 8, kWide = 32;        // pixels at most of a tile
constexpr int64_t kSharedBytes = 44 << 10;  // 48 go without asking, with what a kernel has of its own

bool is_there(const Branch& branch) { return branch.coefficients != nullptr || branch.weight != nullptr; }

// The edges from `first`, as many as one launch takes.
BackwardTable backward_table(const Params& p, int64_t first) {
  BackwardTable b{};
  b.shape = shape_of(p);
  b.edges = static_cast<int>(std::min<int64_t>(kEdges, static_cast<int64_t>(p.edges.size()) - first));
  for (int k = 0; k < b.edges; ++k) {
    const Edge& e = b.edge[k] = p.edges[first + k];
    b.average = b.average || is_there(e.average);
    b.maximum = b.maximum || (p.maximum != nullptr && is_there(e.maximum));
    b.skips = b.skips || e.skip_weight != nullptr;
  }
  b.x = p.x, b.pixel = p.pixel;
  b.averages = p.average, b.average_pixel = p.average_pixel;
  b.maxima = p.maximum, b.maximum_pixel = p.maximum_pixel;
  b.x_grad = p.x_grad, b.x_grad_pixel = p.x_grad_pixel;
  b.slices = static_cast<int>((p.channels + kSlice - 1) / kSlice);
  return b;
}

// Bytes of shared memory for a tile, which it makes as high as fits.
size_t choose_tile(BackwardTable& b) {
  const Shape& s = b.shape;
  const int channels = std::min(s.channels, kSlice);
  // What an output around a tile leaves of each channel.
  const int64_t bytes = 4 * (b.average + b.maximum + b.skips) + b.maximum;
  const int64_t terms = 4 * static_cast<int64_t>(b.edges) * kTerms * kSlice;
  const auto outputs = [&](int pixels, int most) { return std::min(most, (pixels + 1) / s.stride + 1); };
  b.tiles_wide = (s.width + kWide - 1) / kWide;
  b.wide = (s.width + b.tiles_wide - 1) / b.tiles_wide;
  for (b.high = std::min(kHigh, s.height);; --b.high) {
    b.tiles_high = (s.height + b.high - 1) / b.high;
    b.outputs = outputs(b.high, s.out_height) * outputs(b.wide, s.out_width);
    if (b.high == 1 || terms + b.outputs * channels * bytes <= kSharedBytes) break;
  }
  b.high = (s.height + b.tiles_high - 1) / b.tiles_high;  // evenly
  b.tiles_high = (s.height + b.high - 1) / b.high;
  return static_cast<size_t>(terms + b.outputs * channels * bytes);
}

template <class T, int W>
cudaError_t backward(const Params& p, cudaStream_t stream) {
  const int64_t edges = static_cast<int64_t>(p.edges.size());
  for (int64_t first = 0; first < edges; first += kEdges) {
    BackwardTable b = backward_table(p, first);
    if (!b.average && !b.maximum && !b.skips) continue;
    const size_t bytes = choose_tile(b);
    const auto blocks = static_cast<unsigned>(p.images * b.tiles_high * b.tiles_wide * b.slices);
    FASTNAS_LAUNCH_SHARED((backward_kernel<T, W>), blocks, kThreads, bytes, stream, b);
  }
  return cudaGetLastError();
}

}  // namespace

int64_t forward_workspace(const Params& p) {
  const int64_t pooled = (p.average_norms.empty() ? 0 : 1) + (p.maximum_norms.empty() ? 0 : 1);
  return 4 * pooled * share_count(p, forward_table(p, pack_width(p)));
}

int64_t backward_workspace(const Params&) { return 0; }

}  // namespace fastnas::shared_pooling

using fastnas::Dtype;
using fastnas::cuda::BFloat16;
using fastnas::cuda::kPack;

extern "C" cudaError_t fastnas_shared_pooling_forward(const fastnas::shared_pooling::Params* params,
                                                      void* workspace, cudaStream_t stream) {
  using namespace fastnas::shared_pooling;
  const bool packed = all_packed(*params);
  float* shares = static_cast<float*>(workspace);
  if (params->dtype == Dtype::float32)
    return packed ? forward<float, kPack<float>>(*params, shares, stream)
                  : forward<float, 1>(*params, shares, stream);
  return packed ? forward<BFloat16, kPack<BFloat16>>(*params, shares, stream)
                : forward<BFloat16, 1>(*params, shares, stream);
}

extern "C" cudaError_t fastnas_shared_pooling_backward(const fastnas::shared_pooling::Params* params, void*,
                                                       cudaStream_t stream) {
  using namespace fastnas::shared_pooling;
  const bool packed = all_packed(*params);
  if (params->dtype == Dtype::float32)
    return packed ? backward<float, kPack<float>>(*params, stream) : backward<float, 1>(*params, stream);
  return packed ? backward<BFloat16, kPack<BFloat16>>(*params, stream)
                : backward<BFloat16, 1>(*params, stream);
}
