// Pixels to memory and into the moments of their channels (cpu/moments.h). Included inside a level's
// namespace, behind cpu/channels.h: no guard, no includes.

// The mean of an image's first values, value(0) and so on, is the shift of its moments, so that a mean far
// from zero does not destroy the variance.
template <class T, class Value>
FASTNAS_INLINE void set_shift(T* shift, int64_t positions, const Value& value) {
  Vec<T> sum[4] = {};
  for (int64_t i = 0; i < positions; ++i) sum[i % 4] += value(i);
  const Vec<T> total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  store_channels<T>(shift, total * (Real<T>(1) / static_cast<Real<T>>(positions)), Whole{});
}

// Adds values to an image's moments of one vector of channels. Calls value(0) and so on once each.
template <class T, class Count, class Value>
FASTNAS_INLINE void add_values(const Moments<T>& moments, int64_t c, Count count, int64_t positions,
                               const Value& value) {
  const Vec<T> shift = load_channels(moments.shift + c, Whole{});
  Vec<T> sum[4] = {}, squares[4] = {};
  int64_t i = 0;
  for (; i + 4 <= positions; i += 4)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Vec<T> off = value(i + j) - shift;
      sum[j] += off;
      squares[j] += off * off;
    }
  for (; i < positions; ++i) {
    const Vec<T> off = value(i) - shift;
    sum[0] += off;
    squares[0] += off * off;
  }
  const Vec<T> all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  const Vec<T> all_squares = (squares[0] + squares[1]) + (squares[2] + squares[3]);
  for (int64_t l = 0; l < lanes_of<T>(count); ++l) {
    moments.sum[c + l] += static_cast<Wide<T>>(all[l]);
    moments.squares[c + l] += static_cast<Wide<T>>(all_squares[l]);
  }
}

// Stores a tile (positions, width) of whole vectors as pixels and adds it to an image's moments (null: not
// wanted).
template <class T>
inline void store_pixels(const T* tile, int64_t width, int64_t positions, int64_t channels, T* pixels,
                         int64_t pixel, const Moments<T>* moments, bool first) {
  for_each_vector<T>(channels, [&](int64_t, int64_t c, auto count) {
    const T* from = tile + c;
    T* to = pixels + c;
    const auto store_next = [&](int64_t i) {
      const Vec<T> value = load(from + i * width);
      store_channels(to + i * pixel, value, count);
      return value;
    };
    if (moments == nullptr) {
      for (int64_t i = 0; i < positions; ++i) store_next(i);
      return;
    }
    if (first) set_shift<T>(moments->shift + c, positions, [&](int64_t i) { return load(from + i * width); });
    add_values<T>(*moments, c, count, positions, store_next);
  });
}

// Adds pixels to an image's moments.
template <class T>
inline void add_pixels(const T* pixels, int64_t pixel, int64_t positions, int64_t channels,
                       const Moments<T>& moments, bool first) {
  for_each_vector<T>(channels, [&](int64_t, int64_t c, auto count) {
    const auto value = [&](int64_t i) { return load_channels(pixels + i * pixel + c, count); };
    if (first) set_shift<T>(moments.shift + c, positions, value);
    add_values<T>(moments, c, count, positions, value);
  });
}

// Adds sums over a tile, (channels) each, to an image's moments.
template <class T>
inline void add_to_moments(const T* sum, const T* squares, int64_t channels, const Moments<T>& moments) {
  for (int64_t c = 0; c < channels; ++c) {
    moments.sum[c] += static_cast<Wide<T>>(element(sum, c));
    moments.squares[c] += static_cast<Wide<T>>(element(squares, c));
  }
}
