// Backward: from the gradients of raw outputs to those of weights and source. Included inside a level's
// namespace: no guard, no includes.

// dt = a (g + b (t - mean) + c) of some positions, `position` elements apart in `out` and vectors `vector`.
// `next_grad` is read next.
template <class T>
inline void raw_gradient(const Branch& b, const T* grad, const T* raw, const T* next_grad, int64_t positions,
                         int64_t position, int64_t vector, T* out) {
  for_each_vector<T>(b.channels, [&](int64_t v, int64_t c, auto count) {
    const T* coefficients = static_cast<const T*>(b.coefficients) + c;
    const Vec<T> scale = load_channels(coefficients, count);
    const Vec<T> of_raw = load_channels(coefficients + b.coefficient_row, count);
    const Vec<T> constant = load_channels(coefficients + 2 * b.coefficient_row, count);
    const Vec<T> mean = load_channels(static_cast<const T*>(b.mean) + c, count);
    for (int64_t i = 0; i < positions; ++i) {
      __builtin_prefetch(next_grad + i * b.grad_pixel + c);
      const Vec<T> g = load_channels(grad + i * b.grad_pixel + c, count);
      const Vec<T> t = load_channels(raw + i * b.raw_pixel + c, count);
      store<T>(out + i * position + v * vector, scale * ((g + constant) + of_raw * (t - mean)));
    }
  });
}

// The gradient of the activated source under a branch without depthwise convolution: a tile (positions,
// channels) of rows [first, last), added.
template <class T>
inline void add_to_source(const Branch& b, const Planes& p, const T* tile, int64_t first, int64_t last,
                          T* input_grad) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t width = p.vectors * lanes;
  for (int64_t v = 0; v < p.vectors; ++v)
    for (int64_t y = first; y < last; ++y) {
      const T* from = tile + (y - first) * b.width * width + v * lanes;
      T* to = at(input_grad, p, v, y * b.stride + b.shift + p.pad, b.shift + p.pad);
      for (int64_t x = 0; x < b.width; ++x, to += b.stride * lanes)
        store<T>(to, load(to) + load(from + x * width));
    }
}

// The transpose of the depthwise convolution, from w.plane to w.input_grad: added, or written if that is
// `fresh`. With stride 1 it calls finished(y) as soon as row y is.
template <class T, class Finished>
inline void depthwise_transpose(const Source& s, const Branch& b, const Planes& p, const T* weights,
                                bool fresh, const Workspace<T>& w, const Finished& finished) {
  constexpr int64_t lanes = kLanes<T>;
  const Depthwise<T>& depthwise = depthwise_of<T>(b.kernel, b.stride, b.dilation);
  const int64_t taps = b.kernel * b.kernel, tap_row = b.dilation * p.columns * lanes;
  const int64_t offset = p.pad - b.dilation * (b.kernel / 2);
  if (b.stride == 1) {
    const T* reversed = weights + p.vectors * lanes * taps;
    for (int64_t y = 0; y < s.height; ++y) {
      for (int64_t v = 0; v < p.vectors; ++v)
        (fresh ? depthwise.row : depthwise.add_row)(at(w.plane, p, v, y + offset, offset), tap_row,
                                                    reversed + v * taps * lanes,
                                                    at(w.input_grad, p, v, y + p.pad, p.pad), lanes, s.width);
      finished(y);
    }
  } else {
    for (int64_t v = 0; v < p.vectors; ++v)
      for (int64_t y = 0; y < b.height; ++y)
        depthwise.scatter(at(w.input_grad, p, v, y * b.stride + offset, offset), tap_row,
                          weights + v * taps * lanes, at(w.plane, p, v, y + p.pad, p.pad), b.width);
  }
}

// The gradient sink of a tile: to the planes that the transpose reads.
template <class T>
struct StoreGradient {
  StoreProduct<T, false> plane;
  Soon<T, false> next_raw, next_input;

  template <int R, int V>
  FASTNAS_INLINE void operator()(int64_t first_row, int64_t first_vector, const Vec<T> (&tile)[R][V]) const {
    plane(first_row, first_vector, tile);
    next_raw.template prefetch<R, V>(first_row, first_vector);
    next_input.template prefetch<R, V>(first_row, first_vector);
  }
};

template <class T>
inline const T* raw_of(const Branch& b, int64_t image) {
  return static_cast<const T*>(b.raw) + image * b.height * b.width * b.raw_pixel;
}

template <class T>
inline const T* grad_of(const Branch& b, int64_t image) {
  return static_cast<const T*>(b.grad) + image * b.height * b.width * b.grad_pixel;
}

// Gradients of one branch and one image: of its weights, added to `depthwise_grad` and `pointwise_grad`
// (null: not wanted), and of the tiles' depthwise outputs, into w.plane, or without a depthwise convolution
// added to w.input_grad. `next` is the branch behind it.
template <class T>
inline void backward_tiles(const Source& s, const Branch& b, const Planes& p, int64_t image,
                           const T* depthwise, const T* pointwise, T* depthwise_grad, T* pointwise_grad,
                           const Branch& next, Activation<T>& activation, const Workspace<T>& w) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t width = whole_vectors<T>(b.channels), depth = p.vectors * lanes;
  const T *grad = grad_of<T>(b, image), *raw = raw_of<T>(b, image);
  const int64_t step = tile_rows(b.width, std::max(s.channels, b.channels));
  for (int64_t y = 0; y < b.height; y += step) {
    const int64_t end = std::min(y + step, b.height), positions = (end - y) * b.width;
    activation.until_output(b, end);
    const bool last = end == b.height;
    raw_gradient(b, grad + y * b.width * b.grad_pixel, raw + y * b.width * b.raw_pixel,
                 last ? grad_of<T>(next, image) : grad + end * b.width * b.grad_pixel, positions, width,
                 lanes, w.b);
    if (pointwise_grad != nullptr) {
      depthwise_tile(b, p, w.input, depthwise, y, end, w.a);
      const StoreProduct<T, true> sum{pointwise_grad, depth, lanes};
      matmul(w.b, width, 1, w.a, depth, positions, b.channels, p.vectors, sum);
    }
    if (b.kernel == 0) {
      const StoreProduct<T, false> tile{w.a, depth, lanes};
      matmul(w.b, 1, width, pointwise, depth, b.channels, positions, p.vectors, tile);
      add_to_source(b, p, w.a, y, end, w.input_grad);
      continue;
    }
    Soon<T, false> soon_raw{last ? raw_of<T>(next, image) : raw + end * b.width * b.raw_pixel, b.raw_pixel};
    Soon<T, false> soon_input = activation.soon();
    for (int64_t row = y; row < end; ++row) {
      const StoreGradient<T> plane{
          {at(w.plane, p, 0, row + p.pad, p.pad), lanes, plane_size<T>(p)}, soon_raw, soon_input};
      for (Soon<T, false>* soon : {&soon_raw, &soon_input}) soon->pixels += b.width * soon->pixel;
      matmul(w.b + (row - y) * b.width * width, 1, width, pointwise, depth, b.channels, b.width, p.vectors,
             plane);
    }
    if (depthwise_grad != nullptr)
      for (int64_t v = 0; v < p.vectors; ++v)
        depthwise_of<T>(b.kernel, b.stride, b.dilation)
            .weights(first_tap(static_cast<const T*>(w.input), p, b, v, y), b.dilation * p.columns * lanes,
                     at(w.plane, p, v, y + p.pad, p.pad), lanes,
                     {end - y, b.width, b.stride * p.columns * lanes, p.columns * lanes},
                     depthwise_grad + v * b.kernel * b.kernel * lanes);
  }
}

// The same for a dense convolution: the gradient of the raw outputs into w.plane, and of the weights.
template <class T>
inline void dense_backward_tiles(const Source& s, const Branch& b, const Planes& p, int64_t image,
                                 T* weights_grad, Activation<T>& activation, const Workspace<T>& w) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t step = tile_rows(b.width, std::max(s.channels, b.channels)), row = p.columns * lanes;
  for (int64_t y = 0; y < b.height; y += step) {
    const int64_t end = std::min(y + step, b.height);
    activation.until_output(b, end);
    for (int64_t i = y; i < end; ++i) {
      const int64_t first = (image * b.height + i) * b.width;
      const T* grad = static_cast<const T*>(b.grad) + first * b.grad_pixel;
      raw_gradient(b, grad, static_cast<const T*>(b.raw) + first * b.raw_pixel, grad + b.width * b.grad_pixel,
                   b.width, lanes, plane_size<T>(p), at(w.plane, p, 0, i + p.pad, p.pad));
    }
    if (weights_grad != nullptr)
      dense_weights(first_tap(static_cast<const T*>(w.input), p, b, 0, y), b.kernel, row, p.vectors,
                    plane_size<T>(p), at(w.plane, p, 0, y + p.pad, p.pad), b.channels,
                    {end - y, b.width, row, row}, weights_grad);
  }
}

// The transpose of the dense convolution, from w.plane to w.input_grad: added, or written if that is `fresh`.
template <class T, class Finished>
inline void dense_transpose(const Source& s, const Branch& b, const Planes& p, const T* weights, bool fresh,
                            const Workspace<T>& w, const Finished& finished) {
  const int64_t offset = p.pad - b.kernel / 2;
  for (int64_t y = 0; y < s.height; ++y) {
    T* to = at(w.input_grad, p, 0, y + p.pad, p.pad);
    const auto convolve = [&](const auto& sink) {
      dense_row(at(static_cast<const T*>(w.plane), p, 0, y + offset, offset), b.kernel, p.columns * kLanes<T>,
                b.channels, plane_size<T>(p), weights, p.vectors, s.width, sink);
    };
    if (fresh)
      convolve(StoreProduct<T, false>{to, kLanes<T>, plane_size<T>(p)});
    else
      convolve(StoreProduct<T, true>{to, kLanes<T>, plane_size<T>(p)});
    finished(y);
  }
}

// The gradient of rows [first, last) of the source from that of its activation: through the ReLU, and for a
// normalised source the sums over them of it and of it times (x - mean).
template <class T>
inline void source_gradient(const Source& s, const Planes& p, int64_t image, int64_t first, int64_t last,
                            const Workspace<T>& w, Wide<T>* sums, Wide<T>* products) {
  const int64_t pixels = s.height * s.width;
  const T* x = static_cast<const T*>(s.x) + image * pixels * s.pixel;
  T* out = static_cast<T*>(s.grad) + image * pixels * s.grad_pixel;
  const Vec<T> zero = {};
  for_each_vector<T>(s.channels, [&](int64_t v, int64_t c, auto count) {
    Vec<T> mean = {};
    if (s.norm != nullptr) mean = load_channels(static_cast<const T*>(s.norm) + c, count);
    for (int64_t y = first; y < last; ++y) {
      const T* activated = at(w.input, p, v, y + p.pad, p.pad);
      const T* grad = at(w.input_grad, p, v, y + p.pad, p.pad);
      Vec<T> sum = {}, product = {};
      for (int64_t i = 0; i < s.width; ++i) {
        const Vec<T> passed =
            select(load(activated + i * kLanes<T>) > zero, load(grad + i * kLanes<T>), zero);
        T* to = out + (y * s.width + i) * s.grad_pixel + c;
        store_channels(to, s.add ? load_channels(to, count) + passed : passed, count);
        if (s.norm != nullptr) {
          sum += passed;
          product += passed * (load_channels(x + (y * s.width + i) * s.pixel + c, count) - mean);
        }
      }
      if (s.norm != nullptr)
        for (int64_t l = 0; l < lanes_of<T>(count); ++l) {
          sums[c + l] += static_cast<Wide<T>>(sum[l]);
          products[c + l] += static_cast<Wide<T>>(product[l]);
        }
    }
  });
}

// The next branch of the same source, or k if it is the last.
inline size_t next(const Params& params, size_t k) {
  for (size_t i = k + 1; i < params.branches.size(); ++i)
    if (params.branches[i].source == params.branches[k].source) return i;
  return k;
}

// Backward of one image of one source; its chunk of images has the partial sums of the weights' gradients.
template <class T>
inline void backward_image(const Params& params, const Packed<T>& packed, const Planes& p, int64_t source,
                           int64_t image, int64_t chunk, const Workspace<T>& w) {
  const Source& s = params.sources[source];
  Activation<T> activation(s, p, image, packed.rstd[source], w.input);
  Wide<T>* sums = packed.source_sums(source, image);
  Wide<T>* products = sums + packed.source_whole(source);
  int64_t finished = 0;  // rows of the source's gradient
  const auto finish = [&](int64_t last) {
    activation.until(last);
    source_gradient(s, p, image, finished, last, w, sums, products);
    finished = last;
  };
  bool fresh = true;
  for (size_t k = 0; k < params.branches.size(); ++k) {
    const Branch& b = params.branches[k];
    if (b.source != source) continue;
    const bool gathers = b.kernel > 0 && b.stride == 1, is_last = next(params, k) == k;
    if (fresh && !gathers) std::fill(w.input_grad, w.input_grad + p.vectors * plane_size<T>(p), T(0));
    const auto row_done = [&](int64_t y) {
      if (is_last) finish(y + 1);
    };
    if (b.dense) {
      dense_backward_tiles(s, b, p, image, packed.pointwise_grad(k, chunk), activation, w);
      dense_transpose(s, b, p, packed.pointwise[k], fresh, w, row_done);
    } else {
      backward_tiles(s, b, p, image, packed.depthwise[k], packed.pointwise[k],
                     packed.depthwise_grad(k, chunk), packed.pointwise_grad(k, chunk),
                     params.branches[next(params, k)], activation, w);
      if (b.kernel > 0) depthwise_transpose(s, b, p, packed.depthwise[k], fresh, w, row_done);
    }
    fresh = false;
  }
  finish(s.height);
}
