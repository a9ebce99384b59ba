// Some pixels of the normalised mixed sum. Branches are taken kTogether at a time, over up to kWide vectors
// of channels: as many streams from memory as are followed well, whole cache lines of each, and sums that
// stay in registers.
#include "cpu/channels.h"

inline constexpr int kTogether = 4;
template <class T>
inline constexpr int kWide = kIsDual<T> ? 1 : 2;
inline constexpr int64_t kAhead = 16;  // pixels whose cache lines are asked for in advance

// Pointers to K branches from `first`, at channel c.
template <class T, int K>
struct Streams {
  const T* x[K];
  int64_t pixel[K];

  FASTNAS_INLINE Streams(const Params& p, size_t first, int64_t c) {
    for (int k = 0; k < K; ++k) {
      x[k] = static_cast<const T*>(p.branches[first + k].x) + c;
      pixel[k] = p.branches[first + k].pixel;
    }
  }
  // Vector v of pixel i of branch k.
  template <class Count>
  FASTNAS_INLINE Vec<T> read(int k, int64_t i, int v, Count count) const {
    const T* from = x[k] + i * pixel[k] + v * kLanes<T>;
    __builtin_prefetch(from + kAhead * pixel[k]);
    return load_channels(from, count);
  }
};

// out += sum of K branches from `first`, over pixels [begin, end) of V vectors of channels; starts from zero
// where `first` is 0, unless it is to be added. The mean is taken off first: where a branch varies little
// around a large one, the sum would lose it.
template <class T, int K, int V, class Count>
FASTNAS_INLINE void add_branches(const Params& p, const Factors<T>& f, size_t first, int64_t begin,
                                 int64_t end, int64_t c, Count count) {
  const Streams<T, K> streams(p, first, c);
  Vec<T> scale[K][V], mean[K][V];
  for (int k = 0; k < K; ++k)
    for (int v = 0; v < V; ++v) {
      scale[k][v] = load(f.scale(first + k) + c + v * kLanes<T>);
      mean[k][v] = load(f.mean(first + k) + c + v * kLanes<T>);
    }
  for (int64_t i = begin; i < end; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      T* to = static_cast<T*>(p.out) + i * p.out_pixel + c + v * kLanes<T>;
      const Vec<T> zero = {};
      Vec<T> sum = first == 0 && !p.add ? zero : load_channels(to, count);
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) sum += scale[k][v] * (streams.read(k, i, v, count) - mean[k][v]);
      store_channels(to, sum, count);
    }
}

// sums[k] += <g, x_k - mean_k> for K branches from `first`, of which the first call also sums g itself into
// the last row.
template <class T, int K, int V, class Count>
FASTNAS_INLINE void add_products(const Params& p, const Factors<T>& f, size_t first, int64_t begin,
                                 int64_t end, int64_t c, Count count, Wide<T>* sums) {
  const Streams<T, K> streams(p, first, c);
  Vec<T> mean[K][V], product[K][V] = {}, total[V] = {};
  for (int k = 0; k < K; ++k)
    for (int v = 0; v < V; ++v) mean[k][v] = load(f.mean(first + k) + c + v * kLanes<T>);
  const T* grad = static_cast<const T*>(p.out) + c;
  for (int64_t i = begin; i < end; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const Vec<T> g = load_channels(grad + i * p.out_pixel + v * kLanes<T>, count);
      total[v] += g;
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) product[k][v] += g * (streams.read(k, i, v, count) - mean[k][v]);
    }
  for (int v = 0; v < V; ++v)
    for (int64_t l = 0; l < lanes_of<T>(count); ++l) {
      Wide<T>* channel = sums + c + v * kLanes<T> + l;
      if (first == 0) channel[p.branches.size() * p.channels] += static_cast<Wide<T>>(total[v][l]);
      for (int k = 0; k < K; ++k) channel[(first + k) * p.channels] += static_cast<Wide<T>>(product[k][v][l]);
    }
}

// z_k of branches from `first`, above which the ReLU passes it: minus infinity where a branch is not
// rectified.
template <class T, int K, int V>
struct Rectifiers {
  Vec<T> scale[K][V], mean[K][V], shift[K][V];
  Vec<Real<T>> floor[K];
  T weight[K];  // 1 where the scale has it

  FASTNAS_INLINE Rectifiers(const Params& p, const Factors<T>& f, size_t first, int64_t c) {
    for (int k = 0; k < K; ++k) {
      const Branch& b = p.branches[first + k];
      const Vec<Real<T>> zero = {};
      floor[k] = b.affine == nullptr ? zero - std::numeric_limits<Real<T>>::infinity() : zero;
      weight[k] = b.affine == nullptr ? T(1) : static_cast<T>(Factors<T>::weight_of(b));
      for (int v = 0; v < V; ++v) {
        scale[k][v] = load(f.scale(first + k) + c + v * kLanes<T>);
        mean[k][v] = load(f.mean(first + k) + c + v * kLanes<T>);
        shift[k][v] = load(f.shift(first + k) + c + v * kLanes<T>);
      }
    }
  }
};

// add_branches, where a branch of the sum is rectified.
template <class T, int K, int V, class Count>
FASTNAS_INLINE void add_rectified(const Params& p, const Factors<T>& f, size_t first, int64_t begin,
                                  int64_t end, int64_t c, Count count) {
  const Streams<T, K> streams(p, first, c);
  const Rectifiers<T, K, V> r(p, f, first, c);
  for (int64_t i = begin; i < end; ++i)
    for (int v = 0; v < V; ++v) {
      T* to = static_cast<T*>(p.out) + i * p.out_pixel + c + v * kLanes<T>;
      const Vec<T> zero = {};
      Vec<T> sum = first == 0 && !p.add ? zero : load_channels(to, count);
      for (int k = 0; k < K; ++k) {
        const Vec<T> off = streams.read(k, i, v, count) - r.mean[k][v];
        sum += max_of(Vec<T>(r.shift[k][v] + r.scale[k][v] * off), r.floor[k]) * r.weight[k];
      }
      store_channels(to, sum, count);
    }
}

// add_products, where a branch of the sum is rectified: of each the product with its own g_k, and the sum of
// that, and where it is wanted g_k itself.
template <class T, int K, int V, class Count>
FASTNAS_INLINE void add_rectified_products(const Params& p, const Factors<T>& f, size_t first, int64_t begin,
                                           int64_t end, int64_t c, Count count, Wide<T>* sums) {
  const Streams<T, K> streams(p, first, c);
  const Rectifiers<T, K, V> r(p, f, first, c);
  Vec<T> product[K][V] = {}, total[K][V] = {};
  const T* grad = static_cast<const T*>(p.out) + c;
  for (int64_t i = begin; i < end; ++i)
    for (int v = 0; v < V; ++v) {
      const Vec<T> g = load_channels(grad + i * p.out_pixel + v * kLanes<T>, count), zero = {};
      for (int k = 0; k < K; ++k) {
        const Branch& b = p.branches[first + k];
        const Vec<T> off = streams.read(k, i, v, count) - r.mean[k][v];
        const Vec<T> passed =
            select(is_above(Vec<T>(r.shift[k][v] + r.scale[k][v] * off), r.floor[k]), g, zero);
        total[k][v] += passed;
        product[k][v] += passed * off;
        if (b.passed != nullptr)
          store_channels(static_cast<T*>(b.passed) + i * b.passed_pixel + c + v * kLanes<T>, passed, count);
      }
    }
  const int64_t branches = static_cast<int64_t>(p.branches.size());
  for (int k = 0; k < K; ++k)
    for (int v = 0; v < V; ++v)
      for (int64_t l = 0; l < lanes_of<T>(count); ++l) {
        Wide<T>* channel = sums + (static_cast<int64_t>(first) + k) * p.channels + c + v * kLanes<T> + l;
        channel[0] += static_cast<Wide<T>>(product[k][v][l]);
        channel[branches * p.channels] += static_cast<Wide<T>>(total[k][v][l]);
      }
}

// Calls body(constant K, first branch, constant V, first channel, Whole or number of channels) for all
// branches and vectors.
template <class T, class Body>
FASTNAS_INLINE void for_each_group(const Params& p, const Body& body) {
  const auto over_branches = [&](auto width, int64_t c, auto count) {
    const size_t branches = p.branches.size();
    size_t k = 0;
    for (; k + kTogether <= branches; k += kTogether)
      body(std::integral_constant<int, kTogether>{}, k, width, c, count);
    for (; k < branches; ++k) body(std::integral_constant<int, 1>{}, k, width, c, count);
  };
  int64_t c = 0;
  for (; c + kWide<T> * kLanes<T> <= p.channels; c += kWide<T> * kLanes<T>)
    over_branches(std::integral_constant<int, kWide<T>>{}, c, Whole{});
  for (; c + kLanes<T> <= p.channels; c += kLanes<T>)
    over_branches(std::integral_constant<int, 1>{}, c, Whole{});
  if (c < p.channels) over_branches(std::integral_constant<int, 1>{}, c, p.channels - c);
}

template <class T>
inline void forward_pixels(const Params& p, const Factors<T>& f, int64_t begin, int64_t end) {
  if (f.rectified()) {
    for_each_group<T>(p, [&](auto branches, size_t first, auto width, int64_t c, auto count) {
      add_rectified<T, decltype(branches)::value, decltype(width)::value>(p, f, first, begin, end, c, count);
    });
    return;
  }
  for_each_group<T>(p, [&](auto branches, size_t first, auto width, int64_t c, auto count) {
    add_branches<T, decltype(branches)::value, decltype(width)::value>(p, f, first, begin, end, c, count);
  });
}

// Adds one chunk's sums to sums (branches + 1, channels), of which the last row is the sum of g; where a
// branch is rectified (2 branches, channels), of which the second half are the sums of each branch's own.
template <class T>
inline void backward_pixels(const Params& p, const Factors<T>& f, int64_t begin, int64_t end, Wide<T>* sums) {
  if (f.rectified()) {
    for_each_group<T>(p, [&](auto branches, size_t first, auto width, int64_t c, auto count) {
      add_rectified_products<T, decltype(branches)::value, decltype(width)::value>(p, f, first, begin, end, c,
                                                                                   count, sums);
    });
    return;
  }
  for_each_group<T>(p, [&](auto branches, size_t first, auto width, int64_t c, auto count) {
    add_products<T, decltype(branches)::value, decltype(width)::value>(p, f, first, begin, end, c, count,
                                                                       sums);
  });
}
