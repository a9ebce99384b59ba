// perturb_ and difference_ on one chunk of elements, compiled once per CPU level by cpu/for_each_level.h.
// Both are bound by memory: they read 2 n and write n elements, once.

// w[i] = saved[i] + eps u[i] for i in [begin, end), past the caches or not.
template <class T, bool kStream>
void perturb_elements(const PerturbParams& p, T eps, int64_t begin, int64_t end) {
  T* w = static_cast<T*>(p.w);
  const T* saved = static_cast<const T*>(p.saved);
  const T* u = static_cast<const T*>(p.u);
  int64_t i = begin;
  for (; i + kLanes<T> <= end; i += kLanes<T>) {
    const Vec<T> moved = load(saved + i) + eps * load(u + i);
    if constexpr (kStream)
      store_streaming(w + i, moved);
    else
      store(w + i, moved);
  }
  const int64_t rest = end - i;
  store_first(w + i, load_first(saved + i, rest) + eps * load_first(u + i, rest), rest);
}

template <class T>
void perturb_chunk(const PerturbParams& p, T eps, bool stream, int64_t begin, int64_t end) {
  if (!stream) return perturb_elements<T, false>(p, eps, begin, end);
  perturb_elements<T, true>(p, eps, begin, end);
  stream_fence();
}

// ahead[i] = (ahead[i] - behind[i]) scale for i in [begin, end).
template <class T>
void difference_chunk(const DifferenceParams& p, T scale, int64_t begin, int64_t end) {
  T* ahead = static_cast<T*>(p.ahead);
  const T* behind = static_cast<const T*>(p.behind);
  int64_t i = begin;
  for (; i + kLanes<T> <= end; i += kLanes<T>) store(ahead + i, (load(ahead + i) - load(behind + i)) * scale);
  const int64_t rest = end - i;
  store_first(ahead + i, (load_first(ahead + i, rest) - load_first(behind + i, rest)) * scale, rest);
}
