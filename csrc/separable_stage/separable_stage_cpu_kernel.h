// One image of one source through all of its branches, forward or backward. The source is brought once into
// padded planes in the second cache; then each branch goes tile by tile (some rows of the output), a tile's
// depthwise outputs and gradients staying in the first cache.
#include "cpu/channels.h"
#include "cpu/store_moments.h"
#include "cpu/tile_matmul.h"
#include "separable_stage/depthwise.h"

template <class T>
FASTNAS_INLINE int64_t plane_size(const Planes& p) {
  return p.rows * p.columns * kLanes<T>;
}

template <class T>
FASTNAS_INLINE T* at(T* planes, const Planes& p, int64_t vector, int64_t y, int64_t x) {
  return planes + vector * plane_size<T>(p) + (y * p.columns + x) * kLanes<T>;
}
template <class T>
FASTNAS_INLINE const T* at(const T* planes, const Planes& p, int64_t vector, int64_t y, int64_t x) {
  return planes + vector * plane_size<T>(p) + (y * p.columns + x) * kLanes<T>;
}

// a = ReLU(x) or ReLU((x - mean) rstd) into padded planes; the padding is zero already.
template <class T>
inline void activate(const Source& s, const Planes& p, const T* x, const T* rstd, T* planes) {
  for_each_vector<T>(s.channels, [&](int64_t v, int64_t c, int64_t count) {
    Vec<T> mean = {}, scale = {};
    const bool normalised = s.norm != nullptr;
    if (normalised) {
      mean = load_channels(static_cast<const T*>(s.norm) + c, count);
      scale = load(rstd + c);
    }
    const Vec<T> zero = {};
    for (int64_t y = 0; y < s.height; ++y) {
      const T* from = x + y * s.width * s.pixel + c;
      T* to = at(planes, p, v, y + p.pad, p.pad);
      for (int64_t i = 0; i < s.width; ++i) {
        Vec<T> value = load_channels(from + i * s.pixel, count);
        if (normalised) value = (value - mean) * scale;
        store<T>(to + i * kLanes<T>, value < zero ? zero : value);  // a NaN stays one
      }
    }
  });
}

// Where a branch's first tap of output (y, 0) reads.
template <class T>
FASTNAS_INLINE const T* first_tap(const T* planes, const Planes& p, const Branch& b, int64_t v, int64_t y) {
  const int64_t offset = p.pad + b.shift - b.dilation * (b.kernel / 2);
  return at(planes, p, v, y * b.stride + offset, offset);
}

// The depthwise outputs of rows [first, last) as (positions, channels).
template <class T, int K>
inline void depthwise_tile(const Branch& b, const Planes& p, const T* planes, const T* weights, int64_t first,
                           int64_t last, T* out) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t width = p.vectors * lanes;
  for (int64_t v = 0; v < p.vectors; ++v)
    for (int64_t y = first; y < last; ++y) {
      const T* in = first_tap(planes, p, b, v, y);
      T* to = out + (y - first) * b.width * width + v * lanes;
      if constexpr (K == 0) {
        for (int64_t x = 0; x < b.width; ++x) store<T>(to + x * width, load(in + x * b.stride * lanes));
      } else {
        depthwise_row<T, K, false>(in, b.stride * lanes, b.dilation * lanes, b.dilation * p.columns * lanes,
                                   weights + v * K * K * lanes, to, width, b.width);
      }
    }
}

#define FASTNAS_KERNEL_SIZES(kernel, call) \
  switch (kernel) {                        \
    case 0: {                              \
      constexpr int K = 0;                 \
      call;                                \
      break;                               \
    }                                      \
    case 3: {                              \
      constexpr int K = 3;                 \
      call;                                \
      break;                               \
    }                                      \
    case 5: {                              \
      constexpr int K = 5;                 \
      call;                                \
      break;                               \
    }                                      \
    default: {                             \
      constexpr int K = 7;                 \
      call;                                \
    }                                      \
  }

// Forward of one image of one source. `depthwise` and `pointwise` are the packed weights of each branch, `moments`
// what is wanted of each.
template <class T>
inline void forward_image(const Params& params, const Packed<T>& packed, const Planes& p, int64_t source,
                          int64_t image, const Workspace<T>& w) {
  const Source& s = params.sources[source];
  activate(s, p, static_cast<const T*>(s.x) + image * s.height * s.width * s.pixel, packed.rstd[source],
           w.input);
  const int64_t depth = whole_vectors<T>(s.channels);
  for (size_t k = 0; k < params.branches.size(); ++k) {
    const Branch& b = params.branches[k];
    if (b.source != source) continue;
    const int64_t width = whole_vectors<T>(b.channels);
    T* raw = static_cast<T*>(b.raw) + image * b.height * b.width * b.raw_pixel;
    const bool wanted = params.training && b.mean != nullptr;
    const Moments<T> moments = packed.moments[k].of(image);
    const int64_t step = tile_rows(b.width, std::max(s.channels, b.channels));
    for (int64_t y = 0; y < b.height; y += step) {
      const int64_t end = std::min(y + step, b.height), positions = (end - y) * b.width;
      FASTNAS_KERNEL_SIZES(b.kernel,
                           (depthwise_tile<T, K>(b, p, w.input, packed.depthwise[k], y, end, w.a)))
      matmul<T, false>(w.a, 1, depth, packed.pointwise[k], width, s.channels, w.b, width, positions, width);
      store_pixels(w.b, width, positions, b.channels, raw + y * b.width * b.raw_pixel, b.raw_pixel,
                   wanted ? &moments : nullptr, y == 0);
    }
  }
}

// dt = a g + b t + c of rows from y, (positions, width).
template <class T>
inline void raw_gradient(const Branch& b, const T* grad, const T* raw, int64_t positions, int64_t width, T* out) {
  for_each_vector<T>(b.channels, [&](int64_t, int64_t c, int64_t count) {
    const T* coefficients = static_cast<const T*>(b.coefficients) + c;
    const Vec<T> of_grad = load_channels(coefficients, count);
    const Vec<T> of_raw = load_channels(coefficients + b.coefficient_row, count);
    const Vec<T> constant = load_channels(coefficients + 2 * b.coefficient_row, count);
    for (int64_t i = 0; i < positions; ++i) {
      const Vec<T> g = load_channels(grad + i * b.grad_pixel + c, count);
      const Vec<T> t = load_channels(raw + i * b.raw_pixel + c, count);
      store<T>(out + i * width + c, of_grad * g + (of_raw * t + constant));
    }
  });
}

// Gradients of one branch and one image: of its weights, added to `depthwise_grad` and `pointwise_grad` (null: not
// wanted), and of the activated source, added to w.input_grad.
template <class T, int K>
inline void backward_branch(const Source& s, const Branch& b, const Planes& p, int64_t image,
                            const T* depthwise, const T* pointwise, T* depthwise_grad, T* pointwise_grad,
                            const Workspace<T>& w) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t width = whole_vectors<T>(b.channels), depth = p.vectors * lanes;
  const T* grad = static_cast<const T*>(b.grad) + image * b.height * b.width * b.grad_pixel;
  const T* raw = static_cast<const T*>(b.raw) + image * b.height * b.width * b.raw_pixel;
  const int64_t step = tile_rows(b.width, std::max(s.channels, b.channels));
  const int64_t tap = b.dilation * lanes, tap_row = b.dilation * p.columns * lanes;
  for (int64_t y = 0; y < b.height; y += step) {
    const int64_t end = std::min(y + step, b.height), positions = (end - y) * b.width;
    raw_gradient(b, grad + y * b.width * b.grad_pixel, raw + y * b.width * b.raw_pixel, positions, width, w.b);
    if (pointwise_grad != nullptr) {
      depthwise_tile<T, K>(b, p, w.input, depthwise, y, end, w.a);
      matmul<T, true>(w.b, width, 1, w.a, depth, positions, pointwise_grad, depth, b.channels, depth);
    }
    matmul<T, false>(w.b, 1, width, pointwise, depth, b.channels, w.c, depth, positions, depth);
    for (int64_t v = 0; v < p.vectors; ++v)
      for (int64_t row = y; row < end; ++row) {
        const T* from = w.c + (row - y) * b.width * depth + v * lanes;
        if constexpr (K == 0) {
          T* to = at(w.input_grad, p, v, row * b.stride + b.shift + p.pad, b.shift + p.pad);
          for (int64_t x = 0; x < b.width; ++x)
            store<T>(to + x * b.stride * lanes, load(to + x * b.stride * lanes) + load(from + x * depth));
        } else {
          T* to = at(w.plane, p, v, row + p.pad, p.pad);
          for (int64_t x = 0; x < b.width; ++x) store<T>(to + x * lanes, load(from + x * depth));
        }
      }
    if constexpr (K > 0) {
      if (depthwise_grad != nullptr)
        for (int64_t v = 0; v < p.vectors; ++v)
          depthwise_weights<T, K>(first_tap(w.input, p, b, v, y), b.stride * lanes, tap, tap_row,
                                  w.c + v * lanes, depth,
                                  {end - y, b.width, b.stride * p.columns * lanes, b.width * depth},
                                  depthwise_grad + v * K * K * lanes);
    }
  }
  if constexpr (K > 0) {
    const int64_t offset = p.pad - b.dilation * (K / 2);
    for (int64_t v = 0; v < p.vectors; ++v)
      if (b.stride == 1) {
        const T* flipped = depthwise + depth * K * K + v * K * K * lanes;
        for (int64_t y = 0; y < s.height; ++y)
          depthwise_row<T, K, true>(at(w.plane, p, v, y + offset, offset), lanes, tap, tap_row, flipped,
                                    at(w.input_grad, p, v, y + p.pad, p.pad), lanes, s.width);
      } else {
        for (int64_t y = 0; y < b.height; ++y)
          depthwise_scatter<T, K>(at(w.input_grad, p, v, y * b.stride + offset, offset), b.stride * lanes, tap,
                                  tap_row, depthwise + v * K * K * lanes,
                                  at(w.plane, p, v, y + p.pad, p.pad), lanes, b.width);
      }
  }
}

// The gradient of the source from that of its activation: through the ReLU, and for a normalised source the
// sums over this image of it and of it times (x - mean).
template <class T>
inline void source_gradient(const Source& s, const Planes& p, int64_t image, const Workspace<T>& w, double* sums,
                            double* products) {
  const int64_t pixels = s.height * s.width;
  const T* x = static_cast<const T*>(s.x) + image * pixels * s.pixel;
  T* out = static_cast<T*>(s.grad) + image * pixels * s.grad_pixel;
  const Vec<T> zero = {};
  for_each_vector<T>(s.channels, [&](int64_t v, int64_t c, int64_t count) {
    Vec<T> mean = {};
    if (s.norm != nullptr) mean = load_channels(static_cast<const T*>(s.norm) + c, count);
    for (int64_t y = 0; y < s.height; ++y) {
      const T* activated = at(w.input, p, v, y + p.pad, p.pad);
      const T* grad = at(w.input_grad, p, v, y + p.pad, p.pad);
      Vec<T> sum = {}, product = {};
      for (int64_t i = 0; i < s.width; ++i) {
        const Vec<T> passed = load(activated + i * kLanes<T>) > zero ? load(grad + i * kLanes<T>) : zero;
        T* to = out + (y * s.width + i) * s.grad_pixel + c;
        if (s.norm == nullptr) {
          store_channels(to, load_channels(to, count) + passed, count);
        } else {
          store_channels(to, passed, count);
          sum += passed;
          product += passed * (load_channels(x + (y * s.width + i) * s.pixel + c, count) - mean);
        }
      }
      if (s.norm != nullptr)
        for (int64_t l = 0; l < std::min(count, kLanes<T>); ++l) {
          sums[c + l] += static_cast<double>(sum[l]);
          products[c + l] += static_cast<double>(product[l]);
        }
    }
  });
}

// Backward of one image of one source; its chunk of images has the partial sums of the weights' gradients.
template <class T>
inline void backward_image(const Params& params, const Packed<T>& packed, const Planes& p, int64_t source,
                           int64_t image, int64_t chunk, const Workspace<T>& w) {
  const Source& s = params.sources[source];
  activate(s, p, static_cast<const T*>(s.x) + image * s.height * s.width * s.pixel, packed.rstd[source],
           w.input);
  std::fill(w.input_grad, w.input_grad + p.vectors * plane_size<T>(p), T(0));
  for (size_t k = 0; k < params.branches.size(); ++k) {
    const Branch& b = params.branches[k];
    if (b.source != source) continue;
    FASTNAS_KERNEL_SIZES(b.kernel, (backward_branch<T, K>(s, b, p, image, packed.depthwise[k],
                                                           packed.pointwise[k], packed.depthwise_grad(k, chunk),
                                                           packed.pointwise_grad(k, chunk), w)))
  }
  double* sums = packed.source_sums(source, image);
  source_gradient(s, p, image, w, sums, sums + packed.source_whole(source));
}
