// The sum of squares of one chunk, compiled once per CPU level by cpu/for_each_level.h.

typedef float VecHalfFloat __attribute__((vector_size(FASTNAS_VEC_BYTES / 2)));

FASTNAS_INLINE Vec<double> load_double(const double* from) { return load(from); }

FASTNAS_INLINE Vec<double> load_double(const float* from) {
  VecHalfFloat values;
  __builtin_memcpy(&values, from, sizeof(values));
  return __builtin_convertvector(values, Vec<double>);
}

// sum of x[i]^2 for i in [begin, end). In double, where the square of a float32 is exact and neither
// overflows nor underflows; in tiles, so that float64's roundings stay few.
template <class T>
double squares_chunk(const T* x, int64_t begin, int64_t end) {
  constexpr int64_t lanes = kLanes<double>;
  constexpr int64_t unroll = 4;
  constexpr int64_t tile = 2048;
  double total = 0;
  for (int64_t i = begin; i < end;) {
    const int64_t last = std::min(end, i + tile);
    Vec<double> sum[unroll] = {};
    for (; i + unroll * lanes <= last; i += unroll * lanes)
#pragma GCC unroll 4
      for (int64_t u = 0; u < unroll; ++u) {
        const Vec<double> values = load_double(x + i + u * lanes);
        sum[u] += values * values;
      }
    double rest = 0;
    for (; i < last; ++i) rest += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    total += sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3])) + rest;
  }
  return total;
}
