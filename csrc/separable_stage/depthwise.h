// Depthwise convolutions over padded planes, one vector of channels at a time. A plane is the image of one
// vector of channels: rows of positions of kLanes elements, with zeros around. Included inside a level's
// namespace: no guard, no includes.

// Outputs of X neighbouring positions: sum over the K x K taps of weight times input. `in` points at the input of the
// first output's first tap; inputs of neighbouring outputs are `step` elements apart, taps `tap` in a row and
// `tap_row` down a column; weights of neighbouring taps are w_tap apart, outputs out_step.
template <class T, int K, int X, bool kAdd>
FASTNAS_INLINE void depthwise_block(const T* in, int64_t step, int64_t tap, int64_t tap_row, const T* w,
                                    T* out, int64_t out_step) {
  Vec<T> sum[X] = {};
#pragma GCC unroll 7
  for (int ky = 0; ky < K; ++ky)
#pragma GCC unroll 7
    for (int kx = 0; kx < K; ++kx) {
      const Vec<T> weight = load(w + (ky * K + kx) * kLanes<T>);
      const T* from = in + ky * tap_row + kx * tap;
#pragma GCC unroll 16
      for (int x = 0; x < X; ++x) sum[x] += weight * load(from + x * step);
    }
#pragma GCC unroll 16
  for (int x = 0; x < X; ++x) {
    T* to = out + x * out_step;
    store<T>(to, kAdd ? load(to) + sum[x] : sum[x]);
  }
}

// The same for `count` neighbouring outputs.
template <class T, int K, bool kAdd>
inline void depthwise_row(const T* in, int64_t step, int64_t tap, int64_t tap_row, const T* w, T* out,
                          int64_t out_step, int64_t count) {
  int64_t x = 0;
  for (; x + 8 <= count; x += 8)
    depthwise_block<T, K, 8, kAdd>(in + x * step, step, tap, tap_row, w, out + x * out_step, out_step);
  for (; x < count; ++x)
    depthwise_block<T, K, 1, kAdd>(in + x * step, step, tap, tap_row, w, out + x * out_step, out_step);
}

// A rectangle of outputs: rows and columns, and how far apart in elements their rows lie in the input's plane and in the
// outputs.
struct Rectangle {
  int64_t rows, columns, in_row, out_row;
};

// w_grad[k] += sum over a rectangle of outputs of out_grad times the input of tap k, for the taps of R rows of
// the kernel: as many sums as stay in registers.
template <class T, int K, int R>
FASTNAS_INLINE void depthwise_weights_rows(const T* in, int64_t step, int64_t tap, int64_t tap_row,
                                           const T* out_grad, int64_t grad_step, const Rectangle& area,
                                           T* w_grad) {
  Vec<T> sum[R][K] = {};
  for (int64_t y = 0; y < area.rows; ++y)
    for (int64_t x = 0; x < area.columns; ++x) {
      const Vec<T> grad = load(out_grad + y * area.out_row + x * grad_step);
      const T* from = in + y * area.in_row + x * step;
#pragma GCC unroll 7
      for (int ky = 0; ky < R; ++ky)
#pragma GCC unroll 7
        for (int kx = 0; kx < K; ++kx) sum[ky][kx] += grad * load(from + ky * tap_row + kx * tap);
    }
#pragma GCC unroll 7
  for (int ky = 0; ky < R; ++ky)
#pragma GCC unroll 7
    for (int kx = 0; kx < K; ++kx) {
      T* to = w_grad + (ky * K + kx) * kLanes<T>;
      store<T>(to, load(to) + sum[ky][kx]);
    }
}

template <class T, int K>
inline void depthwise_weights(const T* in, int64_t step, int64_t tap, int64_t tap_row, const T* out_grad,
                              int64_t grad_step, const Rectangle& area, T* w_grad) {
  constexpr int registers = FASTNAS_VEC_BYTES == 64 ? 26 : 10;
  constexpr int rows = K * K <= registers ? K : 1;
  for (int ky = 0; ky < K; ky += rows)
    depthwise_weights_rows<T, K, rows>(in + ky * tap_row, step, tap, tap_row, out_grad, grad_step, area,
                                       w_grad + ky * K * kLanes<T>);
}

// in_grad of every tap += weight times out_grad, for `count` neighbouring outputs: the transpose for strides
// above one, where a gather would meet gaps.
template <class T, int K>
inline void depthwise_scatter(T* in_grad, int64_t step, int64_t tap, int64_t tap_row, const T* w,
                              const T* out_grad, int64_t grad_step, int64_t count) {
  for (int ky = 0; ky < K; ++ky)
    for (int kx = 0; kx < K; ++kx) {
      const Vec<T> weight = load(w + (ky * K + kx) * kLanes<T>);
      T* to = in_grad + ky * tap_row + kx * tap;
      for (int64_t x = 0; x < count; ++x)
        store<T>(to + x * step, load(to + x * step) + weight * load(out_grad + x * grad_step));
    }
}
