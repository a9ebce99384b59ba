// Vectors of channels out of channels-last memory, of which the last may be cut short. Included inside a
// level's namespace, behind cpu/vec.h: no guard, no includes.

template <class T>
FASTNAS_INLINE int64_t whole_vectors(int64_t channels) {
  return (channels + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// `count` >= 1 channels; lanes beyond them are zero.
template <class T>
FASTNAS_INLINE Vec<T> load_channels(const T* from, int64_t count) {
  return count >= kLanes<T> ? load(from) : load_first(from, count);
}

template <class T>
FASTNAS_INLINE void store_channels(T* to, Vec<T> values, int64_t count) {
  if (count >= kLanes<T>)
    store<T>(to, values);
  else
    store_first<T>(to, values, count);
}

// Calls body(vector, first channel, channels left) for every vector of channels.
template <class T, class Body>
FASTNAS_INLINE void for_each_vector(int64_t channels, const Body& body) {
  for (int64_t v = 0, c = 0; c < channels; ++v, c += kLanes<T>) body(v, c, channels - c);
}
