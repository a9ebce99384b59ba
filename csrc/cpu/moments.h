// Mean and variance per channel of a batch of images, exact also where the mean is far from zero: each image
// sums t - shift and its square in double, and images are merged in their order. Include it before
// cpu/for_each_level.h; cpu/store_moments.h fills it.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/dual.h"

namespace fastnas::cpu {

// Of one image: (channels) each, zero at the start.
template <class T>
struct Moments {
  T* shift;
  Wide<T>*sum, *squares;
};

// The moments of `images` images of `row` channels, a whole number of vectors.
template <class T>
class BatchMoments {
 public:
  BatchMoments() = default;
  BatchMoments(int64_t images, int64_t row)
      : images_(images), row_(row), shifts_(images * row), sums_(images * 2 * row) {}

  Moments<T> of(int64_t image) const {
    Wide<T>* sum = sums_.data() + image * 2 * row_;
    return {shifts_.data() + image * row_, sum, sum + row_};
  }

  // Mean and variance (biased) of channel c over all images of `pixels` pixels each (Chan's update).
  void merge(int64_t c, int64_t pixels, T* mean_out, T* variance_out) const {
    const double count = static_cast<double>(pixels);
    Wide<T> mean = 0, squares = 0;
    for (int64_t image = 0; image < images_; ++image) {
      const Moments<T> m = of(image);
      const Wide<T> delta = static_cast<Wide<T>>(m.shift[c]) + m.sum[c] / count - mean;
      const double before = static_cast<double>(image);
      mean += delta / (before + 1);
      squares += m.squares[c] - m.sum[c] * m.sum[c] / count + delta * delta * count * before / (before + 1);
    }
    *mean_out = static_cast<T>(mean);
    *variance_out = static_cast<T>(std::max(Wide<T>(0), squares) / (count * static_cast<double>(images_)));
  }

 private:
  int64_t images_ = 0, row_ = 0;
  AlignedArray<T> shifts_;
  AlignedArray<Wide<T>> sums_;
};

}  // namespace fastnas::cpu
