#include <vector>

#include "cell/pixel_sum.h"

namespace fastnas::cell {
namespace {

template <class T>
void sum(const PixelSum& p) {
  std::vector<double> sums(p.channels, 0.0);
  for (int64_t i = 0; i < p.pixels; ++i) {
    const T* pixel = static_cast<const T*>(p.x) + i * p.pixel;
    for (int64_t c = 0; c < p.channels; ++c) sums[c] += static_cast<double>(pixel[c]);
  }
  for (int64_t c = 0; c < p.channels; ++c)
    static_cast<T*>(p.out)[c] =
        static_cast<T>(static_cast<double>(static_cast<const T*>(p.scale)[c]) * sums[c]);
}

}  // namespace

void sum_pixels_cpu(const PixelSum& p) { p.dtype == Dtype::float64 ? sum<double>(p) : sum<float>(p); }

}  // namespace fastnas::cell
