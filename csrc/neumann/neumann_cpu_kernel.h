// neumann_step_ on one chunk of elements, compiled once per CPU level by cpu/for_each_level.h.
// Bound by memory: it reads v, series, ahead and behind and writes v and series, once.

// v[i] -= factor (ahead[i] - behind[i]) and series[i] += v[i] for i in [begin, end).
template <class T>
void step_chunk(const Params& p, T factor, int64_t begin, int64_t end) {
  T* v = static_cast<T*>(p.v);
  T* series = static_cast<T*>(p.series);
  const T* ahead = static_cast<const T*>(p.ahead);
  const T* behind = static_cast<const T*>(p.behind);
  int64_t i = begin;
  for (; i + kLanes<T> <= end; i += kLanes<T>) {
    const Vec<T> moved = load(v + i) - factor * (load(ahead + i) - load(behind + i));
    store(v + i, moved);
    store(series + i, load(series + i) + moved);
  }
  const int64_t rest = end - i;
  const Vec<T> difference = load_first(ahead + i, rest) - load_first(behind + i, rest);
  const Vec<T> moved = load_first(v + i, rest) - factor * difference;
  store_first(v + i, moved, rest);
  store_first(series + i, load_first(series + i, rest) + moved, rest);
}
