// Products of small row-major matrices that lie in the first caches, on the vectors of cpu/vec.h. Included
// inside a level's namespace, behind cpu/vec.h: no guard, no includes.

// Rows that are in registers at once: with two vectors each 16 of AVX-512's 32 registers, 8 of AVX2's 16.
inline constexpr int kTileRows = FASTNAS_VEC_BYTES == 64 ? 8 : 4;

// c[r][0 .. V lanes) = sum_k a[k a_k + r a_row] b[k b_k + 0 .. V lanes), or += with kAdd.
template <class T, int R, int V, bool kAdd>
FASTNAS_INLINE void matmul_tile(const T* a, int64_t a_k, int64_t a_row, const T* b, int64_t b_k,
                                int64_t depth, T* c, int64_t c_row) {
  constexpr int64_t lanes = kLanes<T>;
  Vec<T> sum[R][V] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> factor[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) factor[v] = load(b + k * b_k + v * lanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const T scalar = a[k * a_k + r * a_row];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] += factor[v] * scalar;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      T* to = c + r * c_row + v * lanes;
      store<T>(to, kAdd ? load(to) + sum[r][v] : sum[r][v]);
    }
}

template <class T, int V, bool kAdd>
FASTNAS_INLINE void matmul_panel(const T* a, int64_t a_k, int64_t a_row, const T* b, int64_t b_k,
                                 int64_t depth, T* c, int64_t c_row, int64_t rows) {
  int64_t r = 0;
  for (; r + kTileRows <= rows; r += kTileRows)
    matmul_tile<T, kTileRows, V, kAdd>(a + r * a_row, a_k, a_row, b, b_k, depth, c + r * c_row, c_row);
  for (; r < rows; ++r)
    matmul_tile<T, 1, V, kAdd>(a + r * a_row, a_k, a_row, b, b_k, depth, c + r * c_row, c_row);
}

// c (rows, width) = a (rows, depth) b (depth, width), or += with kAdd; `width` is a multiple of the lanes. a is
// read by scalars with any strides, so it may be a transpose; rows of b and c are b_k and c_row apart.
template <class T, bool kAdd>
inline void matmul(const T* a, int64_t a_k, int64_t a_row, const T* b, int64_t b_k, int64_t depth, T* c,
                   int64_t c_row, int64_t rows, int64_t width) {
  constexpr int64_t lanes = kLanes<T>;
  int64_t v = 0;
  for (; v + 2 * lanes <= width; v += 2 * lanes)
    matmul_panel<T, 2, kAdd>(a, a_k, a_row, b + v, b_k, depth, c + v, c_row, rows);
  if (v < width) matmul_panel<T, 1, kAdd>(a, a_k, a_row, b + v, b_k, depth, c + v, c_row, rows);
}
