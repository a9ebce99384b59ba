// Dense k x k convolutions of stride 1 over padded planes (depthwise.h), as products of tiles in registers.
// `Vectors` of inputs and outputs are planes of whole vectors of channels. Included inside a level's
// namespace, behind cpu/tile_matmul.h: no guard, no includes.

// A row of `count` outputs into `sink`, which gets position and output vector of each tile. `in` points at
// the first tap of the first output in the first of `planes` planes of `channels` channels, plane_step apart;
// weights are (taps, planes lanes, outputs lanes).
template <class T, class Sink>
void dense_row(const T* in, int64_t kernel, int64_t tap_row, int64_t channels, int64_t plane_step,
               const T* weights, int64_t outputs, int64_t count, const Sink& sink) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t width = outputs * lanes, taps_size = whole_vectors<T>(channels) * width;
  const auto tile = [&](auto rows, auto wide, int64_t x, int64_t v) {
    constexpr int R = decltype(rows)::value, V = decltype(wide)::value;
    Vec<T> sum[R][V] = {};
    for (int64_t ky = 0; ky < kernel; ++ky)
      for (int64_t kx = 0; kx < kernel; ++kx) {
        const T* from = in + ky * tap_row + (x + kx) * lanes;
        const T* factors = weights + (ky * kernel + kx) * taps_size + v * lanes;
        for (int64_t c = 0; c < channels; c += lanes, from += plane_step, factors += lanes * width)
          multiply_tile<T, R, V>(from, 1, lanes, 0, factors, width, std::min(lanes, channels - c), sum);
      }
    sink(x, v, sum);
  };
  const auto panel = [&](auto wide, int64_t v) {
    constexpr int whole = kTileRows<T, decltype(wide)::value>;
    int64_t x = 0;
    for (; x + whole <= count; x += whole) tile(std::integral_constant<int, whole>{}, wide, x, v);
    for (; x + whole / 2 <= count; x += whole / 2) tile(std::integral_constant<int, whole / 2>{}, wide, x, v);
    for (; x < count; ++x) tile(std::integral_constant<int, 1>{}, wide, x, v);
  };
  int64_t v = 0;
  for (; v + 2 <= outputs; v += 2) panel(std::integral_constant<int, 2>{}, v);
  if (v < outputs) panel(std::integral_constant<int, 1>{}, v);
}

// w_grad (taps, output channels, input planes lanes) += sum over a rectangle of outputs of out_grad times
// input. Both lie in planes of the same geometry.
template <class T>
void dense_weights(const T* in, int64_t kernel, int64_t tap_row, int64_t input_planes, int64_t plane_step,
                   const T* out_grad, int64_t channels, const Rectangle& area, T* w_grad) {
  constexpr int64_t lanes = kLanes<T>;
  constexpr int rows_at_once = kTileRows<T, 1>;
  const int64_t row = input_planes * lanes;
  const auto rows = [&](auto count, const T* inputs, const T* grads, int64_t first, T* to) {
    constexpr int R = decltype(count)::value;
    Vec<T> sum[R][1] = {};
    for (int64_t y = 0; y < area.rows; ++y)
      multiply_tile<T, R, 1>(grads + y * area.out_row, lanes, 1, first, inputs + y * area.in_row, lanes,
                             area.columns, sum);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) store<T>(to + r * row, load(to + r * row) + sum[r][0]);
  };
  for (int64_t tap = 0; tap < kernel * kernel; ++tap)
    for (int64_t v = 0; v < input_planes; ++v) {
      const T* inputs = in + tap / kernel * tap_row + tap % kernel * lanes + v * plane_step;
      T* to = w_grad + tap * channels * row + v * lanes;
      for (int64_t c = 0; c < channels; c += lanes) {
        const T* grads = out_grad + c / lanes * plane_step;
        const int64_t left = std::min(lanes, channels - c);
        int64_t r = 0;
        for (; r + rows_at_once <= left; r += rows_at_once)
          rows(std::integral_constant<int, rows_at_once>{}, inputs, grads, r, to + (c + r) * row);
        for (; r < left; ++r) rows(std::integral_constant<int, 1>{}, inputs, grads, r, to + (c + r) * row);
      }
    }
}
