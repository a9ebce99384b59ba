// The separable stage on the CPU: packed weights, the split into tasks, and the sums over images. The
// arithmetic is in the kernel file. Each file that includes it makes forward and backward of some types, so
// that they are compiled side by side.
//
// A task of forward is one image of one source; a task of backward is a chunk of images, whose bounds depend
// on the number of images alone, of one source. So every sum has one order, for any number of threads.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/aligned.h"
#include "cpu/element.h"
#include "cpu/moments.h"
#include "cpu/parallel.h"
#include "separable_stage/separable_stage.h"

namespace fastnas::separable_stage {

using namespace fastnas::cpu;  // NOLINT: the kernel file is written against cpu's names

// Rows of an output that make a tile: its three arrays stay in the first cache.
inline int64_t tile_rows(int64_t width, int64_t channels) {
  const int64_t positions = std::clamp<int64_t>(2048 / channels, 16, 64);
  return std::max<int64_t>(1, positions / width);
}

// The planes of a source: `vectors` of them, rows of `columns` positions, `pad` of them zeros on each side.
struct Planes {
  int64_t pad, rows, columns, vectors;
};

// What a task holds beside its arguments.
template <class T>
struct Workspace {
  T* input;       // planes of the activated source
  T* input_grad;  // planes of its gradient
  T* plane;       // planes of the gradient of a branch's depthwise output
  T *a, *b, *c;   // tiles of (positions, channels)
};

// to (rows, columns), its rows to_row apart, out of elements row_step and column_step apart. A transpose goes
// down strips of columns: what it reads lies in as many cache lines as a strip is wide.
template <class T>
void copy_matrix(const T* from, int64_t row_step, int64_t column_step, int64_t rows, int64_t columns, T* to,
                 int64_t to_row) {
  constexpr int64_t kStrip = 8;
  if (column_step == 1) {
    for (int64_t r = 0; r < rows; ++r) std::copy_n(from + r * row_step, columns, to + r * to_row);
    return;
  }
  int64_t first = 0;
  for (; first + kStrip <= columns; first += kStrip)
    for (int64_t r = 0; r < rows; ++r) {
      const T* at = from + r * row_step + first * column_step;
      T strip[kStrip];
#pragma GCC unroll 8
      for (int64_t c = 0; c < kStrip; ++c) strip[c] = at[c * column_step];
      std::copy_n(strip, kStrip, to + r * to_row + first);
    }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = first; c < columns; ++c) to[r * to_row + c] = from[r * row_step + c * column_step];
}

// A call's arguments in whole vectors, and its partial sums. Offsets count elements.
template <class T>
class Packed {
 public:
  Packed(const Params& params, bool backward, int64_t chunks);

  std::vector<const T*> rstd;       // of each source, 1 / sqrt(variance + eps)
  std::vector<const T*> depthwise;  // of each branch (vectors, k k, lanes), then the same, taps in reverse
  std::vector<const T*> pointwise;  // forward (source channels, whole channels), backward (channels, whole
                                    // source channels)

  std::vector<BatchMoments<T>> moments;  // forward: of each branch

  Wide<T>* source_sums(int64_t source, int64_t image) const {
    return sums_.data() + sums_at_[source] + image * 2 * source_whole(source);
  }
  int64_t source_whole(int64_t source) const { return whole(params_.sources[source].channels); }
  T* depthwise_grad(size_t k, int64_t chunk) const { return grad(depthwise_at_[k], chunk); }
  T* pointwise_grad(size_t k, int64_t chunk) const { return grad(pointwise_at_[k], chunk); }
  // Makes a chunk's part for the branches of `source` zero.
  void clear_grads(int64_t source, int64_t chunk) const {
    for (size_t k = 0; k < params_.branches.size(); ++k) {
      const Branch& b = params_.branches[k];
      if (b.source != source) continue;
      if (T* at = depthwise_grad(k, chunk)) std::fill_n(at, depthwise_size(b), T(0));
      if (T* at = pointwise_grad(k, chunk)) std::fill_n(at, pointwise_size(b, true), T(0));
    }
  }
  // Adds the partial sums of all chunks of images, in order, to the first's.
  void add_chunks(int64_t chunks) const {
    for_each_chunk_of(chunks * chunk_size_, chunk_size_, 4096, [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t chunk = 1; chunk < chunks; ++chunk)
        for (int64_t i = begin; i < end; ++i) grads_.data()[i] += grads_.data()[chunk * chunk_size_ + i];
    });
  }
  // A branch's sums, after add_chunks, element by element.
  void unpack_grads(size_t k) const {
    const Branch& b = params_.branches[k];
    if (T* at = depthwise_grad(k, 0)) from_blocks(at, depthwise_size(b));
    if (T* at = pointwise_grad(k, 0)) from_blocks(at, pointwise_size(b, true));
  }
  int64_t grads_size() const { return chunk_size_; }  // after add_chunks
  int64_t whole(int64_t channels) const { return (channels + lanes_ - 1) / lanes_ * lanes_; }
  int64_t lanes() const { return lanes_; }

 private:
  T* grad(int64_t offset, int64_t chunk) const {
    return offset < 0 ? nullptr : grads_.data() + chunk * chunk_size_ + offset;
  }
  int64_t depthwise_size(const Branch& b) const {
    return b.dense ? 0 : b.kernel * b.kernel * source_whole(b.source);
  }
  // Of a packed pointwise or dense weight: forward (taps, source channels, whole channels), backward
  // (taps, channels, whole source channels).
  int64_t pointwise_size(const Branch& b, bool backward) const {
    const int64_t taps = b.dense ? b.kernel * b.kernel : 1;
    const int64_t outputs = b.dense ? whole(b.channels) : b.channels;
    return taps * (backward ? outputs * source_whole(b.source) : whole(b.channels) * rows_of(b));
  }
  // Rows of a tap's forward weights: whole vectors for a dense convolution, which goes plane by plane.
  int64_t rows_of(const Branch& b) const {
    return b.dense ? source_whole(b.source) : params_.sources[b.source].channels;
  }
  void pack_depthwise(const Branch& b, T* to) const;
  void pack_pointwise(const Branch& b, bool backward, T* to) const;

  const Params& params_;
  const int64_t lanes_ = lanes_in_force<T>();
  AlignedArray<T> packed_, grads_;
  AlignedArray<Wide<T>> sums_;
  std::vector<int64_t> sums_at_, depthwise_at_, pointwise_at_;
  int64_t chunk_size_ = 0;
};

template <class T>
Packed<T>::Packed(const Params& params, bool backward, int64_t chunks) : params_(params) {
  int64_t size = 0, sums = 0;
  for (const Source& s : params.sources) {
    size += whole(s.channels);
    if (backward) {
      sums_at_.push_back(sums);
      sums += params.images * 2 * whole(s.channels);
    }
  }
  for (const Branch& b : params.branches) {
    size += 2 * depthwise_size(b) + pointwise_size(b, backward);
    if (backward) {
      depthwise_at_.push_back(b.depthwise_grad == nullptr ? -1 : chunk_size_);
      if (b.depthwise_grad != nullptr) chunk_size_ += depthwise_size(b);
      pointwise_at_.push_back(b.pointwise_grad == nullptr ? -1 : chunk_size_);
      if (b.pointwise_grad != nullptr) chunk_size_ += pointwise_size(b, true);
    } else {
      moments.emplace_back(params.images, whole(b.channels));
    }
  }
  packed_ = AlignedArray<T>(size);
  sums_ = AlignedArray<Wide<T>>(sums);
  grads_ = AlignedArray<T>(chunks * chunk_size_, Fill::none);

  T* to = packed_.data();
  for (const Source& s : params.sources) {
    rstd.push_back(to);
    if (s.norm != nullptr)
      for (int64_t c = 0; c < s.channels; ++c)
        to[c] = static_cast<T>(rstd_of(static_cast<const T*>(s.norm)[s.channels + c], params.eps));
    to_blocks(to, whole(s.channels));
    to += whole(s.channels);
  }
  std::vector<T*> places;
  for (const Branch& b : params.branches) {
    places.push_back(to);
    depthwise.push_back(to);
    to += 2 * depthwise_size(b);
    pointwise.push_back(to);
    to += pointwise_size(b, backward);
  }
  for_each_chunk_of(size, static_cast<int64_t>(places.size()), 1, [&](int64_t k, int64_t, int64_t) {
    const Branch& b = params.branches[k];
    if (depthwise_size(b) > 0) pack_depthwise(b, places[k]);
    pack_pointwise(b, backward, places[k] + (pointwise[k] - depthwise[k]));
    to_blocks(places[k], 2 * depthwise_size(b) + pointwise_size(b, backward));
  });
}

template <class T>
void Packed<T>::pack_depthwise(const Branch& b, T* to) const {
  const T* from = static_cast<const T*>(b.depthwise);
  const int64_t channels = params_.sources[b.source].channels, taps = b.kernel * b.kernel;
  T* reversed = to + depthwise_size(b) + (taps - 1) * lanes_;
  for (int64_t c = 0; c < channels; c += lanes_) {
    const int64_t count = std::min(lanes_, channels - c);
    copy_matrix(from + c * taps, 1, taps, taps, count, to + c * taps, lanes_);
    copy_matrix(from + c * taps, 1, taps, taps, count, reversed + c * taps, -lanes_);
  }
}

template <class T>
void Packed<T>::pack_pointwise(const Branch& b, bool backward, T* to) const {
  const T* from = static_cast<const T*>(b.pointwise);
  const int64_t channels = params_.sources[b.source].channels, taps = b.dense ? b.kernel * b.kernel : 1;
  const int64_t tap_size = pointwise_size(b, backward) / taps;
  for (int64_t t = 0; t < taps; ++t)
    if (backward)  // the transpose takes the taps in reverse
      copy_matrix(from + t, channels * taps, taps, b.channels, channels, to + (taps - 1 - t) * tap_size,
                  whole(channels));
    else
      copy_matrix(from + t, taps, channels * taps, channels, b.channels, to + t * tap_size,
                  whole(b.channels));
}

#define FASTNAS_KERNEL_FILE "separable_stage/separable_stage_cpu_kernel.h"
#include "cpu/for_each_level.h"

namespace {

constexpr int64_t kChunks = 16;           // of images in backward, each with its own partial sums,
constexpr int64_t kChunkPositions = 128;  // and at least so many positions, which outweigh them
constexpr int64_t kPerMoment = 16;  // merging one image's moment of a channel costs as many copied elements

template <class T>
void forward_image(const Params& params, const Packed<T>& packed, const Planes& p, int64_t source,
                   int64_t image, const Workspace<T>& w) {
  FASTNAS_DISPATCH(forward_image<T>, params, packed, p, source, image, w);
}

template <class T>
void backward_image(const Params& params, const Packed<T>& packed, const Planes& p, int64_t source,
                    int64_t image, int64_t chunk, const Workspace<T>& w) {
  FASTNAS_DISPATCH(backward_image<T>, params, packed, p, source, image, chunk, w);
}

// The one geometry of a call, so that its padding stays zero from task to task.
template <class T>
Planes planes_of(const Params& params, const Packed<T>& packed) {
  Planes p{};
  for (const Branch& b : params.branches)
    p.pad = std::max(p.pad, std::max(b.shift, b.dilation * (b.kernel / 2)));
  for (const Source& s : params.sources)
    p.vectors = std::max(p.vectors, packed.whole(s.channels) / packed.lanes());
  for (const Branch& b : params.branches)
    if (b.dense) p.vectors = std::max(p.vectors, packed.whole(b.channels) / packed.lanes());
  p.rows = params.sources.front().height + 2 * p.pad;
  p.columns = params.sources.front().width + 2 * p.pad;
  return p;
}

template <class T>
class Scratch {
 public:
  Scratch(const Params& params, const Packed<T>& packed, const Planes& p, bool backward) {
    const int64_t plane = p.vectors * p.rows * p.columns * packed.lanes();
    int64_t tile = 0;
    for (const Branch& b : params.branches) {
      const Source& s = params.sources[b.source];
      tile = std::max(tile, tile_rows(b.width, std::max(s.channels, b.channels)) * b.width *
                                packed.whole(std::max(s.channels, b.channels)));
    }
    memory_ = AlignedArray<T>((backward ? 3 : 1) * plane + 3 * tile);
    T* tiles = memory_.data() + (backward ? 3 : 1) * plane;
    workspace = {memory_.data(), memory_.data() + plane, memory_.data() + 2 * plane,
                 tiles,          tiles + tile,           tiles + 2 * tile};
  }
  Workspace<T> workspace;

 private:
  AlignedArray<T> memory_;
};

template <class T>
void forward(const Params& params) {
  const Packed<T> packed(params, false, 0);
  const Planes planes = planes_of(params, packed);
  const int64_t sources = static_cast<int64_t>(params.sources.size());
  for_each_task(
      sources * params.images, [&] { return Scratch<T>(params, packed, planes, false); },
      [&](int64_t task, const Scratch<T>& scratch) {
        const int64_t source = task / params.images;
        Planes p = planes;
        p.vectors = packed.source_whole(source) / packed.lanes();
        forward_image(params, packed, p, source, task % params.images, scratch.workspace);
      });
  if (!params.training) return;
  int64_t channels = 0;
  for (const Branch& b : params.branches) channels += b.channels;
  const int64_t branches = static_cast<int64_t>(params.branches.size());
  for_each_chunk_of(kPerMoment * params.images * channels, branches, 1, [&](int64_t k, int64_t, int64_t) {
    const Branch& b = params.branches[k];
    if (b.mean == nullptr) return;
    for (int64_t c = 0; c < b.channels; ++c)
      packed.moments[k].merge(c, b.height * b.width, static_cast<T*>(b.mean) + c,
                              static_cast<T*>(b.variance) + c);
  });
}

// The weights' gradients of one branch out of whole vectors, after the chunks were summed into the first.
template <class T>
void unpack_weights(const Params& params, const Packed<T>& packed, size_t k) {
  const Branch& b = params.branches[k];
  const int64_t channels = params.sources[b.source].channels, taps = b.kernel * b.kernel;
  const int64_t lanes = packed.lanes(), row = packed.whole(channels);
  packed.unpack_grads(k);
  if (b.depthwise_grad != nullptr)
    for (int64_t c = 0; c < channels; c += lanes)
      copy_matrix(packed.depthwise_grad(k, 0) + c * taps, 1, lanes, std::min(lanes, channels - c), taps,
                  static_cast<T*>(b.depthwise_grad) + c * taps, taps);
  if (b.pointwise_grad == nullptr) return;
  const T* from = packed.pointwise_grad(k, 0);
  T* to = static_cast<T*>(b.pointwise_grad);
  if (!b.dense) return copy_matrix(from, row, 1, b.channels, channels, to, channels);
  for (int64_t out = 0; out < b.channels; ++out)
    copy_matrix(from + out * row, 1, b.channels * row, channels, taps, to + out * channels * taps, taps);
}

// BatchNorm's backward as three coefficients a channel: d x = a (d + b (x - mean) + c), where d is the
// gradient of (x - mean) rstd. Sums over the images in order.
template <class T>
void merge_coefficients(const Params& params, const Packed<T>& packed, int64_t source) {
  const Source& s = params.sources[source];
  const double count = static_cast<double>(params.images * s.height * s.width);
  const int64_t row = packed.source_whole(source);
  T* out = static_cast<T*>(s.coefficients);
  for (int64_t c = 0; c < s.channels; ++c) {
    Wide<T> sum = 0, product = 0;
    for (int64_t image = 0; image < params.images; ++image) {
      sum += packed.source_sums(source, image)[c];
      product += packed.source_sums(source, image)[row + c];
    }
    const Wide<T> rstd = rstd_of(static_cast<const T*>(s.norm)[s.channels + c], params.eps);
    const Wide<T> of_x = params.training ? -rstd * rstd * product / count : Wide<T>(0);
    out[c] = static_cast<T>(rstd);
    out[s.channels + c] = static_cast<T>(of_x);
    out[2 * s.channels + c] = static_cast<T>(params.training ? -sum / count : Wide<T>(0));
  }
}

template <class T>
void backward(const Params& params) {
  const int64_t pixels = params.sources.front().height * params.sources.front().width;
  const int64_t chunk_size =
      std::max((params.images + kChunks - 1) / kChunks, (kChunkPositions + pixels - 1) / pixels);
  const int64_t chunks = (params.images + chunk_size - 1) / chunk_size;
  const Packed<T> packed(params, true, chunks);
  const Planes planes = planes_of(params, packed);
  const int64_t sources = static_cast<int64_t>(params.sources.size());
  for_each_task(
      sources * chunks, [&] { return Scratch<T>(params, packed, planes, true); },
      [&](int64_t task, const Scratch<T>& scratch) {
        const int64_t source = task / chunks, chunk = task % chunks;
        Planes p = planes;
        p.vectors = packed.source_whole(source) / packed.lanes();
        packed.clear_grads(source, chunk);
        for (int64_t image = chunk * chunk_size; image < std::min(params.images, (chunk + 1) * chunk_size);
             ++image)
          backward_image(params, packed, p, source, image, chunk, scratch.workspace);
      });
  packed.add_chunks(chunks);
  const int64_t branches = static_cast<int64_t>(params.branches.size());
  for_each_chunk_of(packed.grads_size(), branches, 1, [&](int64_t k, int64_t, int64_t) {
    unpack_weights(params, packed, static_cast<size_t>(k));
  });
  int64_t channels = 0;
  for (const Source& s : params.sources) channels += s.norm == nullptr ? 0 : s.channels;
  for_each_chunk_of(kPerMoment * params.images * channels, sources, 1, [&](int64_t source, int64_t, int64_t) {
    if (params.sources[source].norm != nullptr) merge_coefficients(params, packed, source);
  });
}

}  // namespace

}  // namespace fastnas::separable_stage
