// A source in padded planes, and what branches read of it. Included inside a level's namespace: no guard, no
// includes.

template <class T>
FASTNAS_INLINE int64_t plane_size(const Planes& p) {
  return p.rows * p.columns * kLanes<T>;
}

template <class T>
FASTNAS_INLINE T* at(T* planes, const Planes& p, int64_t vector, int64_t y, int64_t x) {
  return planes + vector * plane_size<T>(p) + (y * p.columns + x) * kLanes<T>;
}
template <class T>
FASTNAS_INLINE const T* at(const T* planes, const Planes& p, int64_t vector, int64_t y, int64_t x) {
  return planes + vector * plane_size<T>(p) + (y * p.columns + x) * kLanes<T>;
}

// One image of a source, brought into padded planes row by row as its first branch goes: a = ReLU(x) or
// ReLU((x - mean) rstd). The padding is zero already.
template <class T>
class Activation {
 public:
  Activation(const Source& s, const Planes& p, int64_t image, const T* rstd, T* planes)
      : s_(s),
        p_(p),
        x_(static_cast<const T*>(s.x) + image * s.height * s.width * s.pixel),
        rstd_(rstd),
        planes_(planes) {}

  // Brings all rows up to `last`, not included.
  void until(int64_t last) {
    last = std::min(last, s_.height);
    if (last <= done_) return;
    for_each_vector<T>(s_.channels, [&](int64_t v, int64_t c, auto count) {
      Vec<T> mean = {}, scale = {};
      const bool normalised = s_.norm != nullptr;
      if (normalised) {
        mean = load_channels(static_cast<const T*>(s_.norm) + c, count);
        scale = load(rstd_ + c);
      }
      for (int64_t y = done_; y < last; ++y) {
        const T* from = x_ + y * s_.width * s_.pixel + c;
        T* to = at(planes_, p_, v, y + p_.pad, p_.pad);
        for (int64_t i = 0; i < s_.width; ++i) {
          Vec<T> value = load_channels(from + i * s_.pixel, count);
          if (normalised) value = (value - mean) * scale;
          store<T>(to + i * kLanes<T>, relu(value));
        }
      }
    });
    done_ = last;
  }
  // All rows that a branch reads for its outputs of rows before `end`.
  void until_output(const Branch& b, int64_t end) {
    until((end - 1) * b.stride + b.shift + b.dilation * (b.kernel / 2) + 1);
  }
  // What is read next.
  Soon<T, false> soon() const {
    return {x_ + std::min(done_, s_.height - 1) * s_.width * s_.pixel, s_.pixel};
  }

 private:
  const Source& s_;
  const Planes& p_;
  const T* x_;
  const T* rstd_;
  T* planes_;
  int64_t done_ = 0;
};

// Where a branch's first tap of output (y, 0) reads.
template <class T>
FASTNAS_INLINE const T* first_tap(const T* planes, const Planes& p, const Branch& b, int64_t v, int64_t y) {
  const int64_t offset = p.pad + b.shift - b.dilation * (b.kernel / 2);
  return at(planes, p, v, y * b.stride + offset, offset);
}

// The depthwise outputs of rows [first, last) as (positions, channels).
template <class T>
inline void depthwise_tile(const Branch& b, const Planes& p, const T* planes, const T* weights, int64_t first,
                           int64_t last, T* out) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t width = p.vectors * lanes, taps = b.kernel * b.kernel;
  for (int64_t v = 0; v < p.vectors; ++v)
    for (int64_t y = first; y < last; ++y) {
      const T* in = first_tap(planes, p, b, v, y);
      T* to = out + (y - first) * b.width * width + v * lanes;
      if (b.kernel == 0)
        for (int64_t x = 0; x < b.width; ++x) store<T>(to + x * width, load(in + x * b.stride * lanes));
      else
        depthwise_of<T>(b.kernel, b.stride, b.dilation)
            .row(in, b.dilation * p.columns * lanes, weights + v * taps * lanes, to, width, b.width);
    }
}
