// SGD's update of one chunk of elements, compiled once per CPU level by cpu/for_each_level.h.
// Bound by memory: it reads w, grad and buffer and writes w and buffer, once.

// The new w; `buffer` becomes its new self. What a constant of 0 switches off is not computed: 0 times an
// infinite weight would be NaN.
template <class V, class T>
FASTNAS_INLINE V sgd_update(V w, V grad, V& buffer, const SgdFactors<T>& factors, bool has_buffer) {
  V step = grad * factors.clip;
  if (factors.weight_decay != 0) step += factors.weight_decay * w;
  if (has_buffer) step = buffer = factors.momentum * buffer + step;
  return w - factors.learning_rate * step;
}

template <class T>
void sgd_chunk(const SgdParams& p, const SgdFactors<T>& factors, int64_t begin, int64_t end) {
  T* w = static_cast<T*>(p.w);
  const T* grad = static_cast<const T*>(p.grad);
  T* buffer = static_cast<T*>(p.buffer);
  Vec<T> moved = {};
  int64_t i = begin;
  for (; i + kLanes<T> <= end; i += kLanes<T>) {
    if (buffer) moved = load(buffer + i);
    store(w + i, sgd_update(load(w + i), load(grad + i), moved, factors, buffer != nullptr));
    if (buffer) store(buffer + i, moved);
  }
  const int64_t rest = end - i;
  if (buffer) moved = load_first(buffer + i, rest);
  store_first(
      w + i,
      sgd_update(load_first(w + i, rest), load_first(grad + i, rest), moved, factors, buffer != nullptr),
      rest);
  if (buffer) store_first(buffer + i, moved, rest);
}
