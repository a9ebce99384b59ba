// virtual_step_ on one chunk of elements, compiled once per CPU level by cpu/for_each_level.h.
// Bound by memory: it reads w, grad and buffer and writes w, once.

// The new w. What a constant of 0 switches off is not computed: 0 times an infinite weight would be NaN.
template <class V, class T>
FASTNAS_INLINE V stepped(V w, V grad, V buffer, const Factors<T>& factors, bool has_buffer) {
  V step = grad;
  if (factors.weight_decay != 0) step += factors.weight_decay * w;
  if (has_buffer) step += factors.momentum * buffer;
  return w - factors.learning_rate * step;
}

template <class T>
void step_chunk(const Params& p, const Factors<T>& factors, int64_t begin, int64_t end) {
  T* w = static_cast<T*>(p.w);
  const T* grad = static_cast<const T*>(p.grad);
  const T* buffer = static_cast<const T*>(p.buffer);
  Vec<T> momentum = {};
  int64_t i = begin;
  for (; i + kLanes<T> <= end; i += kLanes<T>) {
    if (buffer) momentum = load(buffer + i);
    store(w + i, stepped(load(w + i), load(grad + i), momentum, factors, buffer != nullptr));
  }
  const int64_t rest = end - i;
  if (buffer) momentum = load_first(buffer + i, rest);
  store_first(
      w + i,
      stepped(load_first(w + i, rest), load_first(grad + i, rest), momentum, factors, buffer != nullptr),
      rest);
}
