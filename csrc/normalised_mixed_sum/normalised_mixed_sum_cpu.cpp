// The normalised mixed sum on the CPU: factors per channel, the split into chunks of pixels, and the sums
// over them in one order; the arithmetic is in the kernel file.
#include <algorithm>
#include <limits>
#include <type_traits>

#include "cpu/aligned.h"
#include "cpu/element.h"
#include "cpu/parallel.h"
#include "normalised_mixed_sum/normalised_mixed_sum.h"

namespace fastnas::normalised_mixed_sum {

using namespace fastnas::cpu;  // NOLINT: the kernel file is written against cpu's names

// Per channel, in whole vectors: each branch's w rstd and mean. Where a branch of the sum is rectified, its
// scale rstd in place of w rstd, and each branch's shift.
template <class T>
class Factors {
 public:
  explicit Factors(const Params& p)
      : rectified_(p.is_rectified()),
        row_((p.channels + kMaxLanes - 1) / kMaxLanes * kMaxLanes),
        branches_(static_cast<int64_t>(p.branches.size())),
        data_((rectified_ ? 3 : 2) * branches_ * row_) {
    for (int64_t c = 0; c < p.channels; ++c) {
      for (int64_t k = 0; k < branches_; ++k) {
        const Branch& b = p.branches[k];
        const Wide<T> factor = b.affine == nullptr ? weight_of(b) : scale_of(b, c);
        data_.data()[k * row_ + c] = static_cast<T>(factor * rstd_of(b, p, c));
        data_.data()[(branches_ + k) * row_ + c] = static_cast<T>(mean_of(b, c));
        if (rectified_) data_.data()[(2 * branches_ + k) * row_ + c] = static_cast<T>(shift_of(b, p, c));
      }
    }
    to_blocks(data_.data(), (rectified_ ? 3 : 2) * branches_ * row_);
  }
  bool rectified() const { return rectified_; }
  const T* scale(size_t k) const { return data_.data() + static_cast<int64_t>(k) * row_; }
  const T* mean(size_t k) const { return scale(static_cast<size_t>(branches_) + k); }
  const T* shift(size_t k) const { return scale(2 * static_cast<size_t>(branches_) + k); }

  static Wide<T> weight_of(const Branch& b) {
    return b.weight == nullptr ? Wide<T>(1) : static_cast<Wide<T>>(*static_cast<const T*>(b.weight));
  }
  static Wide<T> mean_of(const Branch& b, int64_t c) {
    return b.norm == nullptr ? Wide<T>(0) : static_cast<Wide<T>>(static_cast<const T*>(b.norm)[c]);
  }
  static Wide<T> rstd_of(const Branch& b, const Params& p, int64_t c) {
    return b.norm == nullptr ? Wide<T>(1)
                             : cpu::rstd_of(static_cast<const T*>(b.norm)[p.channels + c], p.eps);
  }
  // Of the affine part; 1 and 0 where there is none.
  static Wide<T> scale_of(const Branch& b, int64_t c) {
    return b.affine == nullptr ? Wide<T>(1) : static_cast<Wide<T>>(static_cast<const T*>(b.affine)[c]);
  }
  static Wide<T> shift_of(const Branch& b, const Params& p, int64_t c) {
    return b.affine == nullptr ? Wide<T>(0)
                               : static_cast<Wide<T>>(static_cast<const T*>(b.affine)[p.channels + c]);
  }

 private:
  bool rectified_;
  int64_t row_, branches_;
  AlignedArray<T> data_;
};

#define FASTNAS_KERNEL_FILE "normalised_mixed_sum/normalised_mixed_sum_cpu_kernel.h"
#include "cpu/for_each_level.h"

namespace {

// Pixels per unit of work. Fixed, so that the order of every sum is.
constexpr int64_t kForwardChunk = 512;
constexpr int64_t kBackwardChunk = 256;

template <class T>
void forward_pixels(const Params& p, const Factors<T>& f, int64_t begin, int64_t end) {
  FASTNAS_DISPATCH(forward_pixels<T>, p, f, begin, end);
}

template <class T>
void backward_pixels(const Params& p, const Factors<T>& f, int64_t begin, int64_t end, Wide<T>* sums) {
  FASTNAS_DISPATCH(backward_pixels<T>, p, f, begin, end, sums);
}

template <class T>
std::vector<Factors<T>> factors_of(const std::vector<Params>& sums) {
  std::vector<Factors<T>> factors;
  for (const Params& p : sums) factors.emplace_back(p);
  return factors;
}

template <class T>
void forward(const std::vector<Params>& sums) {
  const std::vector<Factors<T>> factors = factors_of<T>(sums);
  for_each_chunk(sums.front().pixels, kForwardChunk, [&](int64_t, int64_t begin, int64_t end) {
    for (size_t i = 0; i < sums.size(); ++i) forward_pixels(sums[i], factors[i], begin, end);
  });
}

// Rows of a sum's products: of each branch with g, and of g; where one is rectified, g's own of each branch.
int64_t rows_of(const Params& p) {
  const int64_t branches = static_cast<int64_t>(p.branches.size());
  return p.is_rectified() ? 2 * branches : branches + 1;
}

// Gradients of the weights and of affine parts, and the coefficients of the branches' gradients, from the
// sums (rows, C) over all pixels.
template <class T>
void finish(const Params& p, const Wide<T>* sums) {
  const int64_t branches = static_cast<int64_t>(p.branches.size());
  const bool rectified = p.is_rectified();
  const double count = static_cast<double>(p.pixels);
  for (int64_t k = 0; k < branches; ++k) {
    const Branch& b = p.branches[k];
    const Wide<T>* products = sums + k * p.channels;
    const Wide<T>* totals = sums + (branches + (rectified ? k : 0)) * p.channels;
    T* affine_grad = static_cast<T*>(b.affine_grad);
    const Wide<T> weight = Factors<T>::weight_of(b);
    Wide<T> weight_grad = 0;
    for (int64_t c = 0; c < p.channels; ++c) {
      const Wide<T> rstd = Factors<T>::rstd_of(b, p, c);
      const Wide<T> scale = Factors<T>::scale_of(b, c);
      weight_grad += scale * (rstd * products[c]);
      if (b.affine != nullptr) weight_grad += Factors<T>::shift_of(b, p, c) * totals[c];
      if (affine_grad != nullptr) {
        affine_grad[c] = static_cast<T>(weight * (rstd * products[c]));
        affine_grad[p.channels + c] = static_cast<T>(weight * totals[c]);
      }
      if (b.coefficients == nullptr) continue;
      const bool through = p.training && p.pixels > 0;
      const Wide<T> of_x = through ? -rstd * rstd * products[c] / count : Wide<T>(0);
      T* out = static_cast<T*>(b.coefficients) + c;
      out[0] = static_cast<T>(weight * (scale * rstd));
      out[p.channels] = static_cast<T>(of_x);
      out[2 * p.channels] = static_cast<T>(through ? -totals[c] / count : Wide<T>(0));
    }
    if (b.weight_grad != nullptr) *static_cast<T*>(b.weight_grad) = static_cast<T>(weight_grad);
  }
}

template <class T>
void backward(const std::vector<Params>& params) {
  const std::vector<Factors<T>> factors = factors_of<T>(params);
  const int64_t pixels = params.front().pixels;
  std::vector<int64_t> at;
  int64_t size = 0;
  for (const Params& p : params) {
    at.push_back(size);
    size += rows_of(p) * p.channels;
  }
  // Chunks are added up in groups, groups in order: a group is a task with its own sums.
  const int64_t chunks = std::max<int64_t>(1, (pixels + kBackwardChunk - 1) / kBackwardChunk);
  const int64_t groups = std::min<int64_t>(64, chunks);
  const AlignedArray<Wide<T>> sums(groups * size);
  for_each_chunk(chunks, (chunks + groups - 1) / groups, [&](int64_t group, int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk)
      for (size_t i = 0; i < params.size(); ++i)
        backward_pixels(params[i], factors[i], chunk * kBackwardChunk,
                        std::min(pixels, (chunk + 1) * kBackwardChunk), sums.data() + group * size + at[i]);
  });
  for (int64_t group = 1; group < groups; ++group)
    for (int64_t i = 0; i < size; ++i) sums.data()[i] += sums.data()[group * size + i];
  for (size_t i = 0; i < params.size(); ++i) finish<T>(params[i], sums.data() + at[i]);
}

}  // namespace

void forward_cpu(const std::vector<Params>& sums) {
  with_type(sums.front().dtype, [&](auto type) { forward<typename decltype(type)::type>(sums); });
}

void backward_cpu(const std::vector<Params>& sums) {
  with_type(sums.front().dtype, [&](auto type) { backward<typename decltype(type)::type>(sums); });
}

}  // namespace fastnas::normalised_mixed_sum
