// Products of small row-major matrices that lie in the first caches, on the vectors of cpu/vec.h. Included
// inside a level's namespace, behind cpu/vec.h: no guard, no includes.

// Rows that are in registers at once, with V vectors each: half of the level's registers, the others hold the
// factors.
template <class T, int V>
inline constexpr int kTileRows = (FASTNAS_VEC_BYTES == 64 ? 16 : 8) / (V * kRegisters<T>);

// sum[r][v] += sum_k a[k a_k + (first + r) a_row] b[k b_k + v lanes ..]
template <class T, int R, int V>
FASTNAS_INLINE void multiply_tile(const T* a, int64_t a_k, int64_t a_row, int64_t first, const T* b,
                                  int64_t b_k, int64_t depth, Vec<T> (&sum)[R][V]) {
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> factor[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) factor[v] = load(b + k * b_k + v * kLanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const T scalar = element(a, k * a_k + (first + r) * a_row);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] += factor[v] * scalar;
    }
  }
}

// What becomes of a product: stored, rows `row` apart and vectors `vector` apart, or added to what is there.
template <class T, bool kAdd>
struct StoreProduct {
  T* to;
  int64_t row, vector;

  template <int R, int V>
  FASTNAS_INLINE void operator()(int64_t first_row, int64_t first_vector, const Vec<T> (&sum)[R][V]) const {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        T* at = to + (first_row + r) * row + (first_vector + v) * vector;
        store<T>(at, kAdd ? load(at) + sum[r][v] : sum[r][v]);
      }
  }
};

// Pixels whose cache lines are needed soon. A product asks for as many as it has results: spread over it,
// they arrive while it is computed, where a burst of requests would wait for each other.
template <class T, bool kWrite>
struct Soon {
  const T* pixels;
  int64_t pixel;

  template <int R, int V>
  FASTNAS_INLINE void prefetch(int64_t first_row, int64_t first_vector) const {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v)
        __builtin_prefetch(pixels + (first_row + r) * pixel + (first_vector + v) * kLanes<T>, kWrite ? 1 : 0);
  }
};

template <class T, int R, int V, class Sink>
FASTNAS_INLINE void multiply_rows(const T* a, int64_t a_k, int64_t a_row, const T* b, int64_t b_k,
                                  int64_t depth, int64_t first_row, int64_t first_vector, const Sink& sink) {
  Vec<T> sum[R][V] = {};
  multiply_tile<T, R, V>(a, a_k, a_row, first_row, b + first_vector * kLanes<T>, b_k, depth, sum);
  sink(first_row, first_vector, sum);
}

template <class T, int V, class Sink>
FASTNAS_INLINE void multiply_panel(const T* a, int64_t a_k, int64_t a_row, const T* b, int64_t b_k,
                                   int64_t depth, int64_t rows, int64_t first_vector, const Sink& sink) {
  constexpr int whole = kTileRows<T, V>, half = whole / 2;
  int64_t r = 0;
  for (; r + whole <= rows; r += whole)
    multiply_rows<T, whole, V>(a, a_k, a_row, b, b_k, depth, r, first_vector, sink);
  if (r + half <= rows) {
    multiply_rows<T, half, V>(a, a_k, a_row, b, b_k, depth, r, first_vector, sink);
    r += half;
  }
  for (; r < rows; ++r) multiply_rows<T, 1, V>(a, a_k, a_row, b, b_k, depth, r, first_vector, sink);
}

// a (rows, depth) b (depth, vectors) into `sink`, tile by tile. a is read by scalars with any strides, so it
// may be a transpose; rows of b are b_k apart.
template <class T, class Sink>
void matmul(const T* a, int64_t a_k, int64_t a_row, const T* b, int64_t b_k, int64_t depth, int64_t rows,
            int64_t vectors, const Sink& sink) {
  int64_t v = 0;
  for (; v + 2 <= vectors; v += 2) multiply_panel<T, 2>(a, a_k, a_row, b, b_k, depth, rows, v, sink);
  if (v == vectors) return;
  // A stride that the compiler knows saves the registers that sixteen rows' addresses would take.
  if (a_row == kLanes<T>)
    multiply_panel<T, 1>(a, a_k, kLanes<T>, b, b_k, depth, rows, v, sink);
  else
    multiply_panel<T, 1>(a, a_k, a_row, b, b_k, depth, rows, v, sink);
}
