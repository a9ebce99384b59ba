// Depthwise convolutions over padded planes, one vector of channels at a time. A plane is the image of one
// vector of channels: rows of positions of kLanes elements, with zeros around. Kernel K, stride S and
// dilation D are constants, so that addresses are; `tap_row` is how far apart the kernel's rows lie in the
// plane. Included inside a level's namespace: no guard, no includes.

// Outputs in registers at once: with K weights and the inputs that they meet they fit into the level's.
inline constexpr int kBlock = FASTNAS_VEC_BYTES == 64 ? 8 : 4;

// X neighbouring outputs, out_step apart: sum over the K x K taps of weight times input, added to what is
// there with kAdd. `in` points at the first tap of the first output.
template <class T, int K, int S, int D, int X, bool kAdd>
FASTNAS_INLINE void depthwise_block(const T* in, int64_t tap_row, const T* w, T* out, int64_t out_step) {
  Vec<T> sum[X] = {};
  for (int ky = 0; ky < K; ++ky, in += tap_row, w += K * kLanes<T>)
#pragma GCC unroll 7
    for (int kx = 0; kx < K; ++kx) {
      const Vec<T> weight = load(w + kx * kLanes<T>);
#pragma GCC unroll 8
      for (int x = 0; x < X; ++x) sum[x] += weight * load(in + (x * S + kx * D) * kLanes<T>);
    }
#pragma GCC unroll 8
  for (int x = 0; x < X; ++x) {
    T* to = out + x * out_step;
    store<T>(to, kAdd ? load(to) + sum[x] : sum[x]);
  }
}

// The same for `count` neighbouring outputs.
template <class T, int K, int S, int D, bool kAdd>
void depthwise_row(const T* in, int64_t tap_row, const T* w, T* out, int64_t out_step, int64_t count) {
  int64_t x = 0;
  for (; x + kBlock <= count; x += kBlock)
    depthwise_block<T, K, S, D, kBlock, kAdd>(in + x * S * kLanes<T>, tap_row, w, out + x * out_step,
                                              out_step);
  for (; x < count; ++x)
    depthwise_block<T, K, S, D, 1, kAdd>(in + x * S * kLanes<T>, tap_row, w, out + x * out_step, out_step);
}

// A rectangle of outputs, and how far apart in elements their rows lie in the input's plane and in the
// outputs.
struct Rectangle {
  int64_t rows, columns, in_row, out_row;
};

// w_grad[k] += sum over a rectangle of outputs of out_grad times the input of tap k, for the taps of R rows
// of the kernel: as many sums as stay in registers.
template <class T, int K, int S, int D, int R>
FASTNAS_INLINE void depthwise_weights_rows(const T* in, int64_t tap_row, const T* out_grad, int64_t grad_step,
                                           const Rectangle& area, T* w_grad) {
  Vec<T> sum[R][K] = {};
  for (int64_t y = 0; y < area.rows; ++y) {
    const T* from = in + y * area.in_row;
    const T* grads = out_grad + y * area.out_row;
    for (int64_t x = 0; x < area.columns; ++x, from += S * kLanes<T>, grads += grad_step) {
      const Vec<T> grad = load(grads);
#pragma GCC unroll 7
      for (int ky = 0; ky < R; ++ky)
#pragma GCC unroll 7
        for (int kx = 0; kx < K; ++kx) sum[ky][kx] += grad * load(from + ky * tap_row + kx * D * kLanes<T>);
    }
  }
#pragma GCC unroll 7
  for (int ky = 0; ky < R; ++ky)
#pragma GCC unroll 7
    for (int kx = 0; kx < K; ++kx) {
      T* to = w_grad + (ky * K + kx) * kLanes<T>;
      store<T>(to, load(to) + sum[ky][kx]);
    }
}

template <class T, int K, int S, int D>
void depthwise_weights(const T* in, int64_t tap_row, const T* out_grad, int64_t grad_step,
                       const Rectangle& area, T* w_grad) {
  constexpr int registers = (FASTNAS_VEC_BYTES == 64 ? 26 : 10) / kRegisters<T>;
  constexpr int rows = K * K <= registers ? K : 1;
  for (int ky = 0; ky < K; ky += rows)
    depthwise_weights_rows<T, K, S, D, rows>(in + ky * tap_row, tap_row, out_grad, grad_step, area,
                                             w_grad + ky * K * kLanes<T>);
}

// in_grad of every tap += weight times out_grad, for `count` neighbouring outputs: the transpose for strides
// above one, where a gather would meet gaps.
template <class T, int K, int S, int D>
void depthwise_scatter(T* in_grad, int64_t tap_row, const T* w, const T* out_grad, int64_t count) {
  for (int ky = 0; ky < K; ++ky)
    for (int kx = 0; kx < K; ++kx) {
      const Vec<T> weight = load(w + (ky * K + kx) * kLanes<T>);
      T* to = in_grad + ky * tap_row + kx * D * kLanes<T>;
      for (int64_t x = 0; x < count; ++x, to += S * kLanes<T>)
        store<T>(to, load(to) + weight * load(out_grad + x * kLanes<T>));
    }
}

// The functions for one kernel, stride and dilation.
template <class T>
struct Depthwise {
  void (*row)(const T*, int64_t, const T*, T*, int64_t, int64_t);
  void (*add_row)(const T*, int64_t, const T*, T*, int64_t, int64_t);  // stride 1
  void (*weights)(const T*, int64_t, const T*, int64_t, const Rectangle&, T*);
  void (*scatter)(T*, int64_t, const T*, const T*, int64_t);
};

template <class T, int K, int S, int D>
inline constexpr Depthwise<T> kDepthwise{&depthwise_row<T, K, S, D, false>, &depthwise_row<T, K, 1, D, true>,
                                         &depthwise_weights<T, K, S, D>, &depthwise_scatter<T, K, S, D>};

template <class T, int K>
const Depthwise<T>& depthwise_of(int64_t stride, int64_t dilation) {
  if (stride == 1) return dilation == 1 ? kDepthwise<T, K, 1, 1> : kDepthwise<T, K, 1, 2>;
  return dilation == 1 ? kDepthwise<T, K, 2, 1> : kDepthwise<T, K, 2, 2>;
}

template <class T>
const Depthwise<T>& depthwise_of(int64_t kernel, int64_t stride, int64_t dilation) {
  if (kernel == 3) return depthwise_of<T, 3>(stride, dilation);
  return kernel == 5 ? depthwise_of<T, 5>(stride, dilation) : depthwise_of<T, 7>(stride, dilation);
}
