// Some pixels of the normalised mixed sum. Branches are taken kTogether at a time: as many streams from memory as are
// followed well, and sums over them that stay in registers.
#include "cpu/channels.h"

inline constexpr int kTogether = 4;

// out += sum of K branches from `first`, over pixels [begin, end) of one vector of channels; starts from
// `constant` instead of out where that is not null.
template <class T, int K>
FASTNAS_INLINE void add_branches(const Params& p, const Factors<T>& f, size_t first, int64_t begin, int64_t end,
                                 int64_t c, int64_t count, const T* constant) {
  Vec<T> scale[K];
  const T* x[K];
  for (int k = 0; k < K; ++k) {
    scale[k] = load(f.scale(first + k) + c);
    x[k] = static_cast<const T*>(p.branches[first + k].x) + c;
  }
  T* out = static_cast<T*>(p.out) + c;
  for (int64_t i = begin; i < end; ++i) {
    Vec<T> sum = constant != nullptr ? load(constant + c) : load_channels(out + i * p.out_pixel, count);
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k)
      sum += scale[k] * load_channels(x[k] + i * p.branches[first + k].pixel, count);
    store_channels(out + i * p.out_pixel, sum, count);
  }
}

template <class T>
inline void forward_pixels(const Params& p, const Factors<T>& f, int64_t begin, int64_t end) {
  for_each_vector<T>(p.channels, [&](int64_t, int64_t c, int64_t count) {
    for (size_t k = 0; k < p.branches.size(); k += kTogether) {
      const T* constant = k == 0 ? f.constant() : nullptr;
      switch (std::min<size_t>(kTogether, p.branches.size() - k)) {
        case 1:
          add_branches<T, 1>(p, f, k, begin, end, c, count, constant);
          break;
        case 2:
          add_branches<T, 2>(p, f, k, begin, end, c, count, constant);
          break;
        case 3:
          add_branches<T, 3>(p, f, k, begin, end, c, count, constant);
          break;
        default:
          add_branches<T, 4>(p, f, k, begin, end, c, count, constant);
      }
    }
  });
}

// sums[k] += <g, x_k - mean_k> for K branches from `first`; the sum of g itself goes to `total` where that is not
// null.
template <class T, int K>
FASTNAS_INLINE void add_products(const Params& p, const Factors<T>& f, size_t first, int64_t begin, int64_t end,
                                 int64_t c, int64_t count, double* total, double* const* sums) {
  Vec<T> mean[K], product[K] = {}, sum = {};
  const T* x[K];
  for (int k = 0; k < K; ++k) {
    mean[k] = load(f.mean(first + k) + c);
    x[k] = static_cast<const T*>(p.branches[first + k].x) + c;
  }
  const T* grad = static_cast<const T*>(p.out) + c;
  for (int64_t i = begin; i < end; ++i) {
    const Vec<T> g = load_channels(grad + i * p.out_pixel, count);
    sum += g;
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k)
      product[k] += g * (load_channels(x[k] + i * p.branches[first + k].pixel, count) - mean[k]);
  }
  for (int64_t l = 0; l < std::min(count, kLanes<T>); ++l) {
    if (total != nullptr) total[c + l] += static_cast<double>(sum[l]);
    for (int k = 0; k < K; ++k) sums[k][c + l] += static_cast<double>(product[k][l]);
  }
}

// Adds one chunk's sums to sums (branches + 1, channels), of which the last row is the sum of g.
template <class T>
inline void backward_pixels(const Params& p, const Factors<T>& f, int64_t begin, int64_t end, double* sums) {
  const size_t branches = p.branches.size();
  for_each_vector<T>(p.channels, [&](int64_t, int64_t c, int64_t count) {
    for (size_t k = 0; k < branches; k += kTogether) {
      double* rows[kTogether];
      for (int j = 0; j < kTogether; ++j) rows[j] = sums + (k + j) * p.channels;
      double* total = k == 0 ? sums + branches * p.channels : nullptr;
      switch (std::min<size_t>(kTogether, branches - k)) {
        case 1:
          add_products<T, 1>(p, f, k, begin, end, c, count, total, rows);
          break;
        case 2:
          add_products<T, 2>(p, f, k, begin, end, c, count, total, rows);
          break;
        case 3:
          add_products<T, 3>(p, f, k, begin, end, c, count, total, rows);
          break;
        default:
          add_products<T, 4>(p, f, k, begin, end, c, count, total, rows);
      }
    }
  });
}
