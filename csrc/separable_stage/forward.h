// Forward: from a source's planes to raw outputs and their moments. Included inside a level's namespace: no
// guard, no includes.

// Whole vectors of results to pixels of a tensor, `pixel` apart.
template <class T>
struct StorePixels {
  T* to;
  int64_t pixel;

  template <int R, int V>
  FASTNAS_INLINE void operator()(int64_t first_row, int64_t first_vector, const Vec<T> (&sum)[R][V]) const {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v)
        store_channels<T>(to + (first_row + r) * pixel + (first_vector + v) * kLanes<T>, sum[r][v], Whole{});
  }
};

// Raw outputs of whole vectors to memory, and sums over a tile of t - shift and its square. The mean of an
// image's first values is the shift.
template <class T>
struct StoreRaw {
  StorePixels<T> raw;
  T* shift;    // null: sums are not wanted
  bool first;  // whether the tile is the image's first
  T *sum, *squares;
  Soon<T, true> next_tile;
  Soon<T, false> next_input;

  template <int R, int V>
  FASTNAS_INLINE void operator()(int64_t first_row, int64_t first_vector, const Vec<T> (&tile)[R][V]) const {
    raw(first_row, first_vector, tile);
    if (shift != nullptr) add_sums(first_row, first_vector, tile);
    next_tile.template prefetch<R, V>(first_row, first_vector);
    next_input.template prefetch<R, V>(first_row, first_vector);
  }

 private:
  template <int R, int V>
  FASTNAS_INLINE void add_sums(int64_t first_row, int64_t first_vector, const Vec<T> (&tile)[R][V]) const {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const int64_t c = (first_vector + v) * kLanes<T>;
      if (first && first_row == 0) {
        Vec<T> total[2] = {};
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) total[r % 2] += tile[r][v];
        store_channels<T>(shift + c, (total[0] + total[1]) * (Real<T>(1) / R), Whole{});
      }
      const Vec<T> from = load_channels(shift + c, Whole{});
      Vec<T> added[2] = {}, multiplied[2] = {};
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Vec<T> off = tile[r][v] - from;
        added[r % 2] += off;
        multiplied[r % 2] += off * off;
      }
      store<T>(sum + c, load(sum + c) + (added[0] + added[1]));
      store<T>(squares + c, load(squares + c) + (multiplied[0] + multiplied[1]));
    }
  }
};

// Rows [first, last) of a dense convolution into `sink`, whose rows are positions.
template <class T, class Sink>
inline void dense_tile(const Source& s, const Branch& b, const Planes& p, const T* planes, const T* weights,
                       int64_t first, int64_t last, const Sink& sink) {
  for (int64_t y = first; y < last; ++y) {
    const auto at_row = [&](int64_t x, int64_t v, const auto& tile) {
      sink((y - first) * b.width + x, v, tile);
    };
    dense_row(first_tap(planes, p, b, 0, y), b.kernel, p.columns * kLanes<T>, s.channels, plane_size<T>(p),
              weights, whole_vectors<T>(b.channels) / kLanes<T>, b.width, at_row);
  }
}

// Forward of one image of one source.
template <class T>
inline void forward_image(const Params& params, const Packed<T>& packed, const Planes& p, int64_t source,
                          int64_t image, const Workspace<T>& w) {
  const Source& s = params.sources[source];
  Activation<T> activation(s, p, image, packed.rstd[source], w.input);
  const int64_t depth = whole_vectors<T>(s.channels);
  for (size_t k = 0; k < params.branches.size(); ++k) {
    const Branch& b = params.branches[k];
    if (b.source != source) continue;
    const int64_t width = whole_vectors<T>(b.channels), vectors = width / kLanes<T>;
    T* raw = static_cast<T*>(b.raw) + image * b.height * b.width * b.raw_pixel;
    const bool wanted = params.training && b.mean != nullptr;
    const Moments<T> moments = packed.moments[k].of(image);
    const int64_t step = tile_rows(b.width, std::max(s.channels, b.channels));
    for (int64_t y = 0; y < b.height; y += step) {
      const int64_t end = std::min(y + step, b.height), positions = (end - y) * b.width;
      T* to = raw + y * b.width * b.raw_pixel;
      activation.until_output(b, end);
      if (!b.dense) depthwise_tile(b, p, w.input, packed.depthwise[k], y, end, w.a);
      if (width == b.channels) {
        std::fill(w.c, w.c + 2 * width, T(0));
        StoreRaw<T> sink{{to, b.raw_pixel},
                         wanted ? moments.shift : nullptr,
                         y == 0,
                         w.c,
                         w.c + width,
                         {to + positions * b.raw_pixel, b.raw_pixel},
                         activation.soon()};
        if (b.dense)
          dense_tile(s, b, p, w.input, packed.pointwise[k], y, end, sink);
        else
          matmul(w.a, 1, depth, packed.pointwise[k], width, s.channels, positions, vectors, sink);
        if (wanted) add_to_moments(w.c, w.c + width, width, moments);
      } else {  // channels cut short
        StoreProduct<T, false> sink{w.b, width, kLanes<T>};
        if (b.dense)
          dense_tile(s, b, p, w.input, packed.pointwise[k], y, end, sink);
        else
          matmul(w.a, 1, depth, packed.pointwise[k], width, s.channels, positions, vectors, sink);
        store_pixels(w.b, width, positions, b.channels, to, b.raw_pixel, wanted ? &moments : nullptr, y == 0);
      }
    }
  }
}
