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

// Larger of two, and NaN if either is: as max-pooling is defined.
template <class T>
FASTNAS_INLINE Vec<T> maximum(Vec<T> a, Vec<T> b) {
  return (a > b) | (a != a) ? a : b;
}

// Rows of pooled pixels, `average` and `maximum` both, as tiles (out_width, whole channels).
template <class T>
inline void pool_row(const Params& p, const T* x, int64_t y, T* average, T* largest) {
  const int64_t width = whole_vectors<T>(p.channels);
  const Taps rows = taps_inside(y, p.stride, p.height);
  for_each_vector<T>(p.channels, [&](int64_t, int64_t c, int64_t count) {
    for (int64_t out = 0; out < p.out_width; ++out) {
      const Taps columns = taps_inside(out, p.stride, p.width);
      const T* corner = x + ((y * p.stride - 1) * p.width + out * p.stride - 1) * p.pixel + c;
      Vec<T> sum = {}, most = {};
      for (int64_t ky = rows.first; ky < rows.last; ++ky)
        for (int64_t kx = columns.first; kx < columns.last; ++kx) {
          const Vec<T> value = load_channels(corner + (ky * p.width + kx) * p.pixel, count);
          sum += value;
          most = ky == rows.first && kx == columns.first ? value : maximum<T>(value, most);
        }
      const int64_t inside = (rows.last - rows.first) * (columns.last - columns.first);
      store<T>(average + out * width + c, sum * (T(1) / static_cast<T>(inside)));
      store<T>(largest + out * width + c, most);
    }
  });
}

// `tiles`: two rows of pooled pixels.
template <class T>
inline void forward_image(const Params& p, int64_t image, const Moments<T>& average, const Moments<T>& largest,
                          T* tiles) {
  const int64_t width = whole_vectors<T>(p.channels);
  const T* x = static_cast<const T*>(p.x) + image * p.height * p.width * p.pixel;
  T* most = tiles + p.out_width * width;
  for (int64_t y = 0; y < p.out_height; ++y) {
    pool_row(p, x, y, tiles, most);
    const int64_t row = (image * p.out_height + y) * p.out_width;
    if (p.average != nullptr)
      store_pixels(tiles, width, p.out_width, p.channels, static_cast<T*>(p.average) + row * p.average_pixel,
                   p.average_pixel, p.average_norms.empty() ? nullptr : &average, y == 0);
    if (p.maximum != nullptr)
      store_pixels(most, width, p.out_width, p.channels, static_cast<T*>(p.maximum) + row * p.maximum_pixel,
                   p.maximum_pixel, p.maximum_norms.empty() ? nullptr : &largest, y == 0);
  }
}

// out (pixels, lanes) = sum over the edges of a g + b p + c, or w g.
template <class T, class CoefficientsOf, class WeightOf>
FASTNAS_INLINE void pooled_gradient(const Params& p, const T* pooled, int64_t pixel, int64_t first, int64_t c,
                                    int64_t count, T* out, const CoefficientsOf& coefficients_of,
                                    const WeightOf& weight_of) {
  const int64_t pixels = p.out_height * p.out_width;
  Vec<T> of_pooled = {}, constant = {};
  for (const Edge& e : p.edges)
    if (const T* coefficients = static_cast<const T*>(coefficients_of(e))) {
      of_pooled += load_channels(coefficients + p.channels + c, count);
      constant += load_channels(coefficients + 2 * p.channels + c, count);
    }
  for (int64_t i = 0; i < pixels; ++i)
    store<T>(out + i * kLanes<T>,
             pooled == nullptr ? constant
                               : of_pooled * load_channels(pooled + (first + i) * pixel + c, count) + constant);
  for (const Edge& e : p.edges) {
    const T* coefficients = static_cast<const T*>(coefficients_of(e));
    const T* weight = static_cast<const T*>(weight_of(e));
    if (coefficients == nullptr && weight == nullptr) continue;
    const Vec<T> none = {};
    const Vec<T> scale = coefficients != nullptr ? load_channels(coefficients + c, count) : none + *weight;
    const T* grad = static_cast<const T*>(e.grad) + first * e.grad_pixel + c;
    for (int64_t i = 0; i < pixels; ++i) {
      T* to = out + i * kLanes<T>;
      store<T>(to, load(to) + scale * load_channels(grad + i * e.grad_pixel, count));
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
  for_each_vector<T>(p.channels, [&](int64_t, int64_t c, int64_t count) {
    pooled_gradient<T>(
        p, static_cast<const T*>(p.average), p.average_pixel, first, c, count, average_grad,
        [](const Edge& e) { return e.average_coefficients; }, [](const Edge& e) { return e.average_weight; });
    if (largest != nullptr)
      pooled_gradient<T>(
          p, largest, p.maximum_pixel, first, c, count, largest_grad,
          [](const Edge& e) { return e.maximum_coefficients; }, [](const Edge& e) { return e.maximum_weight; });
    for (int64_t y = 0; y < p.out_height; ++y) {
      const Taps rows = taps_inside(y, p.stride, p.height);
      for (int64_t out = 0; out < p.out_width; ++out) {
        const Taps columns = taps_inside(out, p.stride, p.width);
        const int64_t corner = (y * p.stride - 1) * p.width + out * p.stride - 1, i = y * p.out_width + out;
        const int64_t inside = (rows.last - rows.first) * (columns.last - columns.first);
        const Vec<T> share = load(average_grad + i * kLanes<T>) * (T(1) / static_cast<T>(inside));
        Vec<T> most = {}, remaining = {};  // the maximum's gradient until its place is found
        if (largest != nullptr) {
          most = load_channels(largest + (first + i) * p.maximum_pixel + c, count);
          remaining = load(largest_grad + i * kLanes<T>);
        }
        for (int64_t ky = rows.first; ky < rows.last; ++ky)
          for (int64_t kx = columns.first; kx < columns.last; ++kx) {
            T* to = x_grad + (corner + ky * p.width + kx) * p.x_grad_pixel + c;
            Vec<T> sum = load_channels(to, count) + share;
            if (largest != nullptr) {
              const Vec<T> value = load_channels(x + (corner + ky * p.width + kx) * p.pixel + c, count);
              const auto here = (value == most) | (value != value);
              sum += here ? remaining : zero;
              remaining = here ? zero : remaining;
            }
            store_channels(to, sum, count);
          }
      }
    }
    for (const Edge& e : p.edges) {
      if (e.skip_weight == nullptr) continue;
      const T weight = *static_cast<const T*>(e.skip_weight);
      const T* grad = static_cast<const T*>(e.grad) + first * e.grad_pixel + c;
      for (int64_t i = 0; i < pixels; ++i) {
        T* to = x_grad + i * p.x_grad_pixel + c;
        store_channels(to, load_channels(to, count) + load_channels(grad + i * e.grad_pixel, count) * weight, count);
      }
    }
  });
}
