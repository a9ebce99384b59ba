#include <vector>

#include "cell/pixel_sum.h"
#include "cpu/element.h"

namespace fastnas::cell {
namespace {

using namespace fastnas::cpu;  // NOLINT

template <class T>
void sum(const PixelSum& p) {
  std::vector<Wide<T>> sums(p.channels, Wide<T>(0));
  for (int64_t i = 0; i < p.pixels; ++i) {
    const T* pixel = static_cast<const T*>(p.x) + i * p.pixel;
    for (int64_t c = 0; c < p.channels; ++c) sums[c] += static_cast<Wide<T>>(pixel[c]);
  }
  for (int64_t c = 0; c < p.channels; ++c)
    static_cast<T*>(p.out)[c] =
        static_cast<T>(static_cast<Wide<T>>(static_cast<const T*>(p.scale)[c]) * sums[c]);
}

}  // namespace

void sum_pixels_cpu(const PixelSum& p) {
  cpu::with_type(p.dtype, [&](auto type) { sum<typename decltype(type)::type>(p); });
}

}  // namespace fastnas::cell
