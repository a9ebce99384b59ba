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

// What a pixel has of the mean of so many.
template <class T>
inline constexpr T kShares[] = {0,        1,        T(1) / 2, T(1) / 3, T(1) / 4,
                                T(1) / 5, T(1) / 6, T(1) / 7, T(1) / 8, T(1) / 9};

template <class T>
FASTNAS_INLINE Vec<T> larger(Vec<T> a, Vec<T> b) {
  return (a > b) | (a != a) ? a : b;  // a NaN stays one
}

// The largest of what it has met; of dual numbers the first that is, row by row.
template <class T>
struct Largest {
  Vec<T> value;

  // `row` numbers the rows; they come in order.
  FASTNAS_INLINE void meet(Vec<T> next, int64_t) { value = larger<T>(next, value); }
  // Of a column and the one behind it.
  FASTNAS_INLINE Largest beside(const Largest& behind) const { return {larger<T>(value, behind.value)}; }
};

template <class A>
struct Largest<Dual<A>> {
  DualVec<A> value;
  Vec<A> row = {};  // where it stands

  FASTNAS_INLINE void meet(DualVec<A> next, int64_t next_row) {
    const auto is_larger = (next > value) | (next != next);
    value = select(is_larger, next, value);
    row = is_larger ? Vec<A>{} + static_cast<A>(next_row) : row;
  }
  FASTNAS_INLINE Largest beside(const Largest& behind) const {
    const auto stays =
        (value > behind.value) | (value != value) | ((value == behind.value) & (row <= behind.row));
    return {select(stays, value, behind.value), stays ? row : behind.row};
  }
};

// Calls body(out, before, middle, behind) for every window along a row, with what at(column) gives of its
// three columns; columns -1 and `width` are outside.
template <class At, class Body>
FASTNAS_INLINE void for_each_window(const Params& p, const At& at, const Body& body) {
  const int64_t outs = p.out_width, stride = p.stride;
  if (stride != 1) {
    for (int64_t out = 0; out < outs; ++out)
      body(out, at(out * stride - 1), at(out * stride), at(out * stride + 1));
    return;
  }
  auto before = at(-1), middle = at(0);
  for (int64_t out = 0; out < outs; ++out) {
    const auto behind = at(out + 1);
    body(out, before, middle, behind);
    before = middle;
    middle = behind;
  }
}

// One column of a window: the sum and the maximum of its rows that are inside.
template <class T>
struct Column {
  Vec<T> sum;
  Largest<T> most;
};

// Row `y` of both pooled images, one vector of channels; null: not wanted. Columns stay in registers from one
// window to the next.
template <class T, class Count>
FASTNAS_INLINE void pool_row(const Params& p, const T* x, int64_t y, T* average, T* largest, Count count) {
  const Taps rows = taps_inside(y, p.stride, p.height);
  const int64_t width = p.width, stride = p.stride, pixel = p.pixel, line = p.width * p.pixel;
  const int64_t average_pixel = p.average_pixel, largest_pixel = p.maximum_pixel,
                height = rows.last - rows.first;
  const T* first = x + (y * stride - 1 + rows.first) * line;
  const auto column = [&](int64_t i) -> Column<T> {
    if (i < 0 || i >= width) return {Vec<T>{}, {Vec<T>{} - std::numeric_limits<Real<T>>::infinity()}};
    const T* at = first + i * pixel;
    const Vec<T> top = load_channels(at, count);
    Column<T> all{top, {top}};
    for (int64_t row = 1; row < height; ++row) {
      const Vec<T> value = load_channels(at + row * line, count);
      all.sum = all.sum + value;
      all.most.meet(value, row);
    }
    return all;
  };
  for_each_window(
      p, column, [&](int64_t out, const Column<T>& before, const Column<T>& middle, const Column<T>& behind) {
        const Taps columns = taps_inside(out, stride, width);
        const Real<T> share = kShares<Real<T>>[height * (columns.last - columns.first)];
        if (average != nullptr)
          store_channels(average + out * average_pixel, (before.sum + middle.sum + behind.sum) * share,
                         count);
        if (largest != nullptr)
          store_channels(largest + out * largest_pixel,
                         before.most.beside(middle.most.beside(behind.most)).value, count);
      });
}

template <class T>
inline void forward_image(const Params& p, int64_t image, const Moments<T>& average,
                          const Moments<T>& largest) {
  const T* x = static_cast<const T*>(p.x) + image * p.height * p.width * p.pixel;
  for (int64_t y = 0; y < p.out_height; ++y) {
    const int64_t row = (image * p.out_height + y) * p.out_width;
    T* to_average = p.average == nullptr ? nullptr : static_cast<T*>(p.average) + row * p.average_pixel;
    T* to_largest = p.maximum == nullptr ? nullptr : static_cast<T*>(p.maximum) + row * p.maximum_pixel;
    for_each_vector<T>(p.channels, [&](int64_t, int64_t c, auto count) {
      pool_row<T>(p, x + c, y, to_average == nullptr ? nullptr : to_average + c,
                  to_largest == nullptr ? nullptr : to_largest + c, count);
    });
    if (!p.average_norms.empty())
      add_pixels(to_average, p.average_pixel, p.out_width, p.channels, average, y == 0);
    if (!p.maximum_norms.empty())
      add_pixels(to_largest, p.maximum_pixel, p.out_width, p.channels, largest, y == 0);
  }
}

// What backward holds of one image and one vector of channels as it goes down the rows; each of these is as
// long as a row of outputs. A window's maximum is the largest of its three rows' maxima, and the first pixel
// that has it lies in the first row that has it: a gradient goes to a row's maximum first, and from there to
// a pixel.
template <class T>
struct Rows {
  Rows(const Params& p, T* memory) : size(p.out_width * kLanes<T>), memory_(memory) {
    constexpr Real<T> nan = std::numeric_limits<Real<T>>::quiet_NaN();
    std::fill_n(zeros(), size, T(0));
    for (int64_t i = 0; i < size; i += kLanes<T>) store<T>(outside() + i, Vec<T>{} + nan);
  }
  // Of a row of x: for each window the largest of its three pixels there.
  T* maxima(int64_t row) const { return at(row % 3); }
  // Of a row of outputs: what each of a window's pixels gets of the average's gradient,
  T* share(int64_t y) const { return at(3 + y % 3); }
  // what its row `tap` gets of the maximum's,
  T* part(int64_t y, int64_t tap) const { return at(6 + tap * (tap + 1) / 2 + y % (tap + 1)); }
  // and what the skip-connections give.
  T* skip(int64_t y) const { return at(12 + y % 2); }
  T* zeros() const { return at(14); }    // in place of an output's row that is not there
  T* outside() const { return at(15); }  // in place of a row of x: NaN is never the maximum
  T* terms(size_t edge) const { return at(kRows) + edge * kTerms * kLanes<T>; }

  int64_t size;

 private:
  T* at(int64_t row) const { return memory_ + row * size; }
  T* memory_;
};

// The numbers of an edge's branch for one vector of channels.
template <class T, class Count>
FASTNAS_INLINE void load_terms(const Params& p, const Branch& branch, int64_t c, Count count, T* terms) {
  if (branch.coefficients == nullptr) return;
  const T* coefficients = static_cast<const T*>(branch.coefficients) + c;
  for (int64_t k = 0; k < 3; ++k)
    store<T>(terms + k * kLanes<T>, load_channels(coefficients + k * p.channels, count));
  store<T>(terms + 3 * kLanes<T>, load_channels(static_cast<const T*>(branch.mean) + c, count));
}

// Adds a (g + b (pooled - mean) + c), or w g.
template <class T, int N>
FASTNAS_INLINE void add_branch(const Branch& branch, const T* terms, const Vec<T> (&g)[N],
                               const Vec<T> (&pooled)[N], Vec<T> (&sum)[N]) {
  if (branch.coefficients != nullptr) {
    const Vec<T> scale = load(terms), of_pooled = load(terms + kLanes<T>);
    const Vec<T> constant = load(terms + 2 * kLanes<T>), mean = load(terms + 3 * kLanes<T>);
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) sum[j] += scale * ((g[j] + constant) + of_pooled * (pooled[j] - mean));
  } else if (branch.weight != nullptr) {
    const T weight = *static_cast<const T*>(branch.weight);
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) sum[j] += g[j] * weight;
  }
}

// What is left of `all`, of which `part` has each lane or zero. By bits: the difference of infinities is NaN.
template <class T>
FASTNAS_INLINE Vec<T> without(Vec<T> all, Vec<T> part) {
  if constexpr (kIsDual<T>) {
    return {without<Real<T>>(all.value, part.value), without<Real<T>>(all.tangent, part.tangent)};
  } else {
    using Bits = decltype(all == part);
    return (Vec<T>)((Bits)all ^ (Bits)part);
  }
}

// Row `y` of the outputs on its way to x.
template <class T>
struct OutputRow {
  OutputRow(const Params& p, const Rows<T>& rows, int64_t y)
      : share(rows.share(y)), skip(rows.skip(y)), inside(taps_inside(y, p.stride, p.height)) {
    for (int64_t tap = 0; tap < 3; ++tap) {
      const bool exists = tap >= inside.first && tap < inside.last;
      maxima[tap] = exists ? rows.maxima(y * p.stride - 1 + tap) : rows.outside();
      part[tap] = rows.part(y, tap);
    }
  }
  const T* maxima[3];
  T *part[3], *share, *skip;
  Taps inside;
};

// The gradients of N outputs from `out`, of which the first is pixel `first` of the batch: each average's
// share, and each maximum's for the first row that has it.
template <class T, int N, class Count>
FASTNAS_INLINE void spread_outputs(const Params& p, const Rows<T>& rows, const OutputRow<T>& row,
                                   int64_t first, int64_t out, int64_t c, Count count) {
  constexpr int64_t lanes = kLanes<T>;
  Vec<T> average[N] = {}, most[N] = {}, average_grad[N] = {}, most_grad[N] = {}, skip[N] = {}, g[N];
  const auto load_pixels = [&](const void* from, int64_t pixel, Vec<T>(&to)[N]) {
    const T* at = static_cast<const T*>(from) + first * pixel + c;
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) to[j] = load_channels(at + j * pixel, count);
  };
  if (p.average != nullptr) load_pixels(p.average, p.average_pixel, average);
  if (p.maximum != nullptr) load_pixels(p.maximum, p.maximum_pixel, most);
  const T* terms = rows.terms(0);
  for (const Edge& e : p.edges) {
    load_pixels(e.grad, e.grad_pixel, g);
    add_branch<T, N>(e.average, terms, g, average, average_grad);
    add_branch<T, N>(e.maximum, terms + kTerms / 2 * lanes, g, most, most_grad);
    if (e.skip_weight != nullptr) {
      const T weight = *static_cast<const T*>(e.skip_weight);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) skip[j] += g[j] * weight;
    }
    terms += kTerms * lanes;
  }
  const Vec<T> zero = {};
#pragma GCC unroll 4
  for (int j = 0; j < N; ++j) {
    const int64_t at = (out + j) * lanes;
    const Taps columns = taps_inside(out + j, p.stride, p.width);
    const int64_t pixels = (row.inside.last - row.inside.first) * (columns.last - columns.first);
    store<T>(row.share + at, average_grad[j] * kShares<Real<T>>[pixels]);
    store<T>(row.skip + at, skip[j]);
    Vec<T> remaining = most_grad[j];  // until its row is found
#pragma GCC unroll 3
    for (int tap = 0; tap < 3; ++tap) {
      const Vec<T> part = select(load(row.maxima[tap] + at) == most[j], remaining, zero);
      store<T>(row.part[tap] + at, part);
      remaining = without<T>(remaining, part);
    }
  }
}

// A pixel of a row of x, and NaN outside.
template <class T, class Count>
FASTNAS_INLINE auto pixels_of(const Params& p, const T* row, Count count) {
  return [row, count, width = p.width, pixel = p.pixel](int64_t column) {
    const bool inside = column >= 0 && column < width;
    return inside ? load_channels(row + column * pixel, count)
                  : Vec<T>{} + std::numeric_limits<Real<T>>::quiet_NaN();
  };
}

// Leaves out a NaN before or behind, which is harmless: the maximum of a window that has one is NaN, equals
// no row's, and its gradient goes nowhere.
template <class T, class Count>
FASTNAS_INLINE void find_maxima(const Params& p, const T* row, T* maxima, Count count) {
  for_each_window(p, pixels_of(p, row, count), [&](int64_t out, Vec<T> before, Vec<T> middle, Vec<T> behind) {
    const Vec<T> most = select(before > middle, before, middle);
    store<T>(maxima + out * kLanes<T>, select(behind > most, behind, most));
  });
}

// The rows of outputs whose window has row `row` of x at 0, 1 and 2.
template <class T>
struct InputRow {
  InputRow(const Params& p, const Rows<T>& rows, int64_t row) : maxima(rows.maxima(row)) {
    for (int64_t tap = 0; tap < 3; ++tap) {
      const int64_t top = row + 1 - tap, y = p.stride == 1 ? top : top / p.stride;  // it divides seldom
      const bool exists = top >= 0 && y * p.stride == top && y < p.out_height;
      share[tap] = exists ? rows.share(y) : rows.zeros();
      part[tap] = exists ? rows.part(y, tap) : rows.zeros();
    }
    skip = p.stride == 1 ? rows.skip(row) : rows.zeros();
  }
  const T *maxima, *share[3], *part[3], *skip;
};

// Adds the gradient of row `x` out of what the outputs around it left.
template <class T, class Count>
FASTNAS_INLINE void gather_row(const Params& p, const InputRow<T>& row, const T* x, T* x_grad, Count count) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t width = p.width, stride = p.stride, pixel = p.x_grad_pixel;
  const Vec<T> zero = {};
  const auto add = [&](int64_t column, Vec<T> value) {
    T* to = x_grad + column * pixel;
    store_channels(to, load_channels(to, count) + value, count);
  };
  Vec<T> here = zero, next = zero;  // of columns out and out + 1, so far
  for_each_window(p, pixels_of(p, x, count), [&](int64_t out, Vec<T> before, Vec<T> middle, Vec<T>) {
    const int64_t at = out * lanes;
    const Vec<T> share = load(row.share[0] + at) + load(row.share[1] + at) + load(row.share[2] + at);
    const Vec<T> grad = load(row.part[0] + at) + load(row.part[1] + at) + load(row.part[2] + at);
    const Vec<T> most = load(row.maxima + at);
    const Vec<T> of_before = select(before == most, grad, zero), remaining = without<T>(grad, of_before);
    const Vec<T> of_middle = select(middle == most, remaining, zero);
    const Vec<T> of_behind = without<T>(remaining, of_middle);
    if (stride == 1) {
      if (out > 0) add(out - 1, here + (share + of_before));
      here = next + (share + of_middle) + load(row.skip + at);
      next = share + of_behind;
      return;
    }
    if (out > 0) add(out * stride - 1, share + of_before);
    add(out * stride, share + of_middle);
    if (out * stride + 1 < width) add(out * stride + 1, share + of_behind);
  });
  if (stride == 1) add(width - 1, here);
}

// Adds the gradient of one image of x. `memory`: kRows rows of outputs and the edges' terms, in vectors.
template <class T>
inline void backward_image(const Params& p, int64_t image, T* memory) {
  constexpr int kAtOnce = (kVecBytes == 64 ? 4 : 2) / kRegisters<T>;  // what the registers hold
  const Rows<T> rows(p, memory);
  const int64_t first_x = image * p.height * p.width, first_out = image * p.out_height * p.out_width;
  for_each_vector<T>(p.channels, [&](int64_t, int64_t c, auto count) {
    const T* x = static_cast<const T*>(p.x) + first_x * p.pixel + c;
    T* x_grad = static_cast<T*>(p.x_grad) + first_x * p.x_grad_pixel + c;
    for (size_t e = 0; e < p.edges.size(); ++e) {
      load_terms(p, p.edges[e].average, c, count, rows.terms(e));
      load_terms(p, p.edges[e].maximum, c, count, rows.terms(e) + kTerms / 2 * kLanes<T>);
    }
    int64_t found = 0, done = 0;  // rows of x
    for (int64_t y = 0; y < p.out_height; ++y) {
      const int64_t begin = y * p.stride - 1, end = std::min(begin + 3, p.height);
      for (found = std::max(found, begin); found < end; ++found)
        find_maxima(p, x + found * p.width * p.pixel, rows.maxima(found), count);
      const OutputRow<T> row(p, rows, y);
      const int64_t first = first_out + y * p.out_width;
      int64_t out = 0;
      for (; out + kAtOnce <= p.out_width; out += kAtOnce)
        spread_outputs<T, kAtOnce>(p, rows, row, first + out, out, c, count);
      for (; out < p.out_width; ++out) spread_outputs<T, 1>(p, rows, row, first + out, out, c, count);
      // Rows that no later output needs.
      const int64_t finished = y + 1 < p.out_height ? std::min(begin + p.stride, end) : end;
      for (done = std::max(done, begin); done < finished; ++done)
        gather_row(p, InputRow<T>(p, rows, done), x + done * p.width * p.pixel,
                   x_grad + done * p.width * p.x_grad_pixel, count);
    }
  });
}
