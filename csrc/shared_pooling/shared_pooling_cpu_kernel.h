// One image of the shared pooling, one vector of channels after the other.
#include "cpu/channels.h"
#include "cpu/store_moments.h"

// The taps of an output's window along one side: [first, last) of 0, 1, 2.
struct Taps {
  int64_t first, last;
};

FASTNAS_INLINE Taps taps_inside(int64_t out, int64_t stride, int64_t size) {
  const int64_t start = out * stride - 1;
  return {start < 0 ? -start : 0, std::min<int64_t>(3, size - start)};
}

template <class T>
FASTNAS_INLINE Vec<T> larger(Vec<T> a, Vec<T> b) {
  return (a > b) | (a != a) ? a : b;  // a NaN stays one
}

// A row of pooled pixels, `average` and `largest`, as tiles (out_width, whole channels): first the windows'
// columns, then their sums and maxima. `columns`: two rows of (width + 2) vectors.
template <class T>
inline void pool_row(const Params& p, const T* x, int64_t y, T* columns, T* average, T* largest) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t width = whole_vectors<T>(p.channels);
  const Taps rows = taps_inside(y, p.stride, p.height);
  T* sums = columns + lanes;
  T* maxima = columns + (p.width + 3) * lanes;
  const Vec<T> zero = {}, least = zero - std::numeric_limits<T>::infinity();
  for_each_vector<T>(p.channels, [&](int64_t, int64_t c, auto count) {
    for (const int64_t outside : {int64_t{-1}, p.width}) {
      store<T>(sums + outside * lanes, zero);
      store<T>(maxima + outside * lanes, least);
    }
    const T* first = x + (y * p.stride - 1 + rows.first) * p.width * p.pixel + c;
    for (int64_t i = 0; i < p.width; ++i) {
      Vec<T> sum = load_channels(first + i * p.pixel, count), most = sum;
      for (int64_t row = 1; row < rows.last - rows.first; ++row) {
        const Vec<T> value = load_channels(first + (row * p.width + i) * p.pixel, count);
        sum += value;
        most = larger<T>(value, most);
      }
      store<T>(sums + i * lanes, sum);
      store<T>(maxima + i * lanes, most);
    }
    for (int64_t out = 0; out < p.out_width; ++out) {
      const Taps inside = taps_inside(out, p.stride, p.width);
      const T share = T(1) / static_cast<T>((rows.last - rows.first) * (inside.last - inside.first));
      const T* at = sums + out * p.stride * lanes;
      const T* at_most = maxima + out * p.stride * lanes;
      store<T>(average + out * width + c, (load(at - lanes) + load(at) + load(at + lanes)) * share);
      store<T>(largest + out * width + c,
               larger<T>(load(at_most - lanes), larger<T>(load(at_most), load(at_most + lanes))));
    }
  });
}

// `tiles`: two rows of pooled pixels, and two of columns.
template <class T>
inline void forward_image(const Params& p, int64_t image, const Moments<T>& average,
                          const Moments<T>& largest, T* tiles) {
  const int64_t width = whole_vectors<T>(p.channels);
  const T* x = static_cast<const T*>(p.x) + image * p.height * p.width * p.pixel;
  T* most = tiles + p.out_width * width;
  for (int64_t y = 0; y < p.out_height; ++y) {
    pool_row(p, x, y, most + p.out_width * width, tiles, most);
    const int64_t row = (image * p.out_height + y) * p.out_width;
    if (p.average != nullptr)
      store_pixels(tiles, width, p.out_width, p.channels, static_cast<T*>(p.average) + row * p.average_pixel,
                   p.average_pixel, p.average_norms.empty() ? nullptr : &average, y == 0);
    if (p.maximum != nullptr)
      store_pixels(most, width, p.out_width, p.channels, static_cast<T*>(p.maximum) + row * p.maximum_pixel,
                   p.maximum_pixel, p.maximum_norms.empty() ? nullptr : &largest, y == 0);
  }
}

// out (pixels, lanes) = sum over the edges of a (g + b (p - mean) + c), or w g. `branch_of` gives an edge's
// pooled branch.
template <class T, class Count, class BranchOf>
FASTNAS_INLINE void pooled_gradient(const Params& p, const T* pooled, int64_t pixel, int64_t first, int64_t c,
                                    Count count, T* out, const BranchOf& branch_of) {
  const int64_t pixels = p.out_height * p.out_width;
  std::fill(out, out + pixels * kLanes<T>, T(0));
  for (const Edge& e : p.edges) {
    const Branch& branch = branch_of(e);
    const T* grad = static_cast<const T*>(e.grad) + first * e.grad_pixel + c;
    if (branch.coefficients != nullptr) {
      const T* coefficients = static_cast<const T*>(branch.coefficients) + c;
      const Vec<T> mean = load_channels(static_cast<const T*>(branch.mean) + c, count);
      const Vec<T> scale = load_channels(coefficients, count);
      const Vec<T> of_pooled = load_channels(coefficients + p.channels, count);
      const Vec<T> constant = load_channels(coefficients + 2 * p.channels, count);
      for (int64_t i = 0; i < pixels; ++i) {
        T* to = out + i * kLanes<T>;
        const Vec<T> off = load_channels(pooled + (first + i) * pixel + c, count) - mean;
        const Vec<T> g = load_channels(grad + i * e.grad_pixel, count);
        store<T>(to, load(to) + scale * ((g + constant) + of_pooled * off));
      }
    } else if (branch.weight != nullptr) {
      const T weight = *static_cast<const T*>(branch.weight);
      for (int64_t i = 0; i < pixels; ++i) {
        T* to = out + i * kLanes<T>;
        store<T>(to, load(to) + load_channels(grad + i * e.grad_pixel, count) * weight);
      }
    }
  }
}

// Adds the gradient of one image of x. `tiles`: two vectors' images of pooled pixels.
template <class T>
inline void backward_image(const Params& p, int64_t image, T* tiles) {
  const int64_t pixels = p.out_height * p.out_width, first = image * pixels;
  const T* x = static_cast<const T*>(p.x) + image * p.height * p.width * p.pixel;
  T* x_grad = static_cast<T*>(p.x_grad) + image * p.height * p.width * p.x_grad_pixel;
  const T* largest = static_cast<const T*>(p.maximum);
  T* average_grad = tiles;
  T* largest_grad = tiles + pixels * kLanes<T>;
  const Vec<T> zero = {};
  for_each_vector<T>(p.channels, [&](int64_t, int64_t c, auto count) {
    pooled_gradient<T>(p, static_cast<const T*>(p.average), p.average_pixel, first, c, count, average_grad,
                       [](const Edge& e) -> const Branch& { return e.average; });
    if (largest != nullptr)
      pooled_gradient<T>(p, largest, p.maximum_pixel, first, c, count, largest_grad,
                         [](const Edge& e) -> const Branch& { return e.maximum; });
    for (int64_t y = 0; y < p.out_height; ++y)
      for (int64_t out = 0; out < p.out_width; ++out) {
        const Taps rows = taps_inside(y, p.stride, p.height), columns = taps_inside(out, p.stride, p.width);
        const int64_t corner = (y * p.stride - 1) * p.width + out * p.stride - 1, i = y * p.out_width + out;
        const int64_t inside = (rows.last - rows.first) * (columns.last - columns.first);
        const Vec<T> share = load(average_grad + i * kLanes<T>) * (T(1) / static_cast<T>(inside));
        Vec<T> most = {}, remaining = {};  // the maximum's gradient until its place is found
        if (largest != nullptr) {
          most = load_channels(largest + (first + i) * p.maximum_pixel + c, count);
          remaining = load(largest_grad + i * kLanes<T>);
        }
        const auto add = [&](int64_t ky, int64_t kx) {
          T* to = x_grad + (corner + ky * p.width + kx) * p.x_grad_pixel + c;
          const auto here = load_channels(x + (corner + ky * p.width + kx) * p.pixel + c, count) == most;
          const Vec<T> sum = load_channels(to, count) + share;
          store_channels(to, here ? sum + remaining : sum, count);
          remaining = here ? zero : remaining;
        };
        if (inside == 9) {
#pragma GCC unroll 3
          for (int64_t ky = 0; ky < 3; ++ky)
#pragma GCC unroll 3
            for (int64_t kx = 0; kx < 3; ++kx) add(ky, kx);
        } else {
          for (int64_t ky = rows.first; ky < rows.last; ++ky)
            for (int64_t kx = columns.first; kx < columns.last; ++kx) add(ky, kx);
        }
      }
    for (const Edge& e : p.edges) {
      if (e.skip_weight == nullptr) continue;
      const T weight = *static_cast<const T*>(e.skip_weight);
      const T* grad = static_cast<const T*>(e.grad) + first * e.grad_pixel + c;
      for (int64_t i = 0; i < pixels; ++i) {
        T* to = x_grad + i * p.x_grad_pixel + c;
        store_channels(to, load_channels(to, count) + load_channels(grad + i * e.grad_pixel, count) * weight,
                       count);
      }
    }
  });
}
