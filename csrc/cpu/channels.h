// Vectors of channels out of channels-last memory. The last one may be cut short, which costs branches and
// copies, so loops over pixels are compiled twice: with Whole, and with a number of channels. Included inside
// a level's namespace, behind cpu/vec.h: no guard, no includes.

struct Whole {};

template <class T>
FASTNAS_INLINE int64_t whole_vectors(int64_t channels) {
  return (channels + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

template <class T>
FASTNAS_INLINE Vec<T> load_channels(const T* from, Whole) {
  return from_tensor<T>(load(from));
}

// The first `count` lanes; those beyond are zero.
template <class T>
FASTNAS_INLINE Vec<T> load_channels(const T* from, int64_t count) {
  return from_tensor<T>(load_first(from, count));
}

template <class T>
FASTNAS_INLINE void store_channels(T* to, Vec<T> values, Whole) {
  store<T>(to, to_tensor<T>(values));
}

template <class T>
FASTNAS_INLINE void store_channels(T* to, Vec<T> values, int64_t count) {
  store_first<T>(to, to_tensor<T>(values), count);
}

template <class T>
FASTNAS_INLINE int64_t lanes_of(Whole) {
  return kLanes<T>;
}

template <class T>
FASTNAS_INLINE int64_t lanes_of(int64_t count) {
  return count;
}

// Calls body(vector, first channel, Whole or number of channels) for every vector of channels.
template <class T, class Body>
FASTNAS_INLINE void for_each_vector(int64_t channels, const Body& body) {
  int64_t v = 0, c = 0;
  for (; c + kLanes<T> <= channels; ++v, c += kLanes<T>) body(v, c, Whole{});
  if (c < channels) body(v, c, channels - c);
}
