// mixed_sum on one chunk of elements, compiled once per CPU level by cpu/for_each_level.h.
// Both are bound by memory: forward reads K n and writes n elements, backward reads (K + 1) n and writes K n.

// Vectors in flight per branch: enough independent FMAs to hide their latency, and whole cache lines per
// stream.
inline constexpr int64_t kUnroll = 8;

// out[i] = sum_k w[k] x_k[i] for i in [begin, end), accumulated in registers over k in order.
template <class T>
void forward_chunk(const ForwardParams& p, const Accumulator<T>* weights, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  constexpr int64_t lanes = kLanes<A>;
  T* out = static_cast<T*>(p.out);
  int64_t i = begin;
  for (; i + kUnroll * lanes <= end; i += kUnroll * lanes) {
    Vec<A> sum[kUnroll] = {};
    for (int64_t k = 0; k < p.branch_count; ++k) {
      const T* x = static_cast<const T*>(p.branches[k]) + i;
#pragma GCC unroll 8
      for (int64_t u = 0; u < kUnroll; ++u) sum[u] += weights[k] * load(x + u * lanes);
    }
#pragma GCC unroll 8
    for (int64_t u = 0; u < kUnroll; ++u) store(out + i + u * lanes, sum[u]);
  }
  for (; i < end; i += lanes) {
    const int64_t count = std::min(lanes, end - i);
    Vec<A> sum = {};
    for (int64_t k = 0; k < p.branch_count; ++k)
      sum += weights[k] * load_first(static_cast<const T*>(p.branches[k]) + i, count);
    store_first(out + i, sum, count);
  }
}

// Branches side by side in backward: four streams keep more of the memory system busy than one after the
// other (on an EPYC with AVX-512, K = 8 and 1 M float32: 3.8 ms on one core instead of 5.8).
inline constexpr int kGroup = 4;

// For N branches over count elements: dx_j = w_j g (kWantGrad) and dots_j += <g, x_j> (kWantDot).
template <class T, int N, bool kWantDot, bool kWantGrad, bool kStream>
void backward_tile(const BackwardParams& p, const Accumulator<T>* weights, const int64_t* members,
                   int64_t begin, int64_t count, double* dots) {
  using A = Accumulator<T>;
  constexpr int64_t lanes = kLanes<A>;
  constexpr int unroll = 2;
  const T* g = static_cast<const T*>(p.grad) + begin;
  const T* x[N];
  T* dx[N];
  for (int j = 0; j < N; ++j) {
    x[j] = kWantDot ? static_cast<const T*>(p.branches[members[j]]) + begin : nullptr;
    dx[j] = kWantGrad ? static_cast<T*>(p.branch_grads[members[j]]) + begin : nullptr;
  }
  Vec<A> dot[N][unroll] = {};
  int64_t i = 0;
  for (; i + unroll * lanes <= count; i += unroll * lanes) {
    Vec<A> grad[unroll];
    for (int u = 0; u < unroll; ++u) grad[u] = load(g + i + u * lanes);
    // All loads before the first store: equal addresses modulo 4 KiB, which x_j and dx_j often have, would
    // make a load wait for the store before it.
    if constexpr (kWantDot)
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j)
#pragma GCC unroll 2
        for (int u = 0; u < unroll; ++u) dot[j][u] += grad[u] * load(x[j] + i + u * lanes);
    if constexpr (kWantGrad)
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j)
#pragma GCC unroll 2
        for (int u = 0; u < unroll; ++u) {
          if constexpr (kStream)
            store_streaming(dx[j] + i + u * lanes, weights[members[j]] * grad[u]);
          else
            store(dx[j] + i + u * lanes, weights[members[j]] * grad[u]);
        }
  }
  for (; i < count; i += lanes) {
    const int64_t rest = std::min(lanes, count - i);
    const Vec<A> grad = load_first(g + i, rest);
    for (int j = 0; j < N; ++j) {
      if constexpr (kWantDot) dot[j][0] += grad * load_first(x[j] + i, rest);
      if constexpr (kWantGrad) store_first(dx[j] + i, weights[members[j]] * grad, rest);
    }
  }
  if constexpr (kWantDot)
    for (int j = 0; j < N; ++j) dots[members[j]] += sum_lanes(dot[j][0] + dot[j][1]);
}

// One chunk for all `members`, in tiles: g stays in the first-level cache while the branches stream by, and
// float32 sums stay short (they go on in double).
template <class T, bool kWantDot, bool kWantGrad, bool kStream>
void backward_members(const BackwardParams& p, const Accumulator<T>* weights,
                      const std::vector<int64_t>& members, int64_t begin, int64_t end, double* dots) {
  constexpr int64_t tile = 2048;
  for (int64_t i = begin; i < end; i += tile) {
    const int64_t count = std::min(tile, end - i);
    size_t m = 0;
    for (; m + kGroup <= members.size(); m += kGroup)
      backward_tile<T, kGroup, kWantDot, kWantGrad, kStream>(p, weights, &members[m], i, count, dots);
    for (; m < members.size(); ++m)
      backward_tile<T, 1, kWantDot, kWantGrad, kStream>(p, weights, &members[m], i, count, dots);
  }
}

// The chunk [begin, end) of all wanted gradients; dots[k] receives its share of <g, x_k>.
template <class T>
void backward_chunk(const BackwardParams& p, const Accumulator<T>* weights, const Wanted& wanted,
                    int64_t begin, int64_t end, double* dots) {
  if (wanted.stream) {
    backward_members<T, true, true, true>(p, weights, wanted.both, begin, end, dots);
    backward_members<T, false, true, true>(p, weights, wanted.grad_only, begin, end, dots);
    stream_fence();
  } else {
    backward_members<T, true, true, false>(p, weights, wanted.both, begin, end, dots);
    backward_members<T, false, true, false>(p, weights, wanted.grad_only, begin, end, dots);
  }
  backward_members<T, true, false, false>(p, weights, wanted.dot_only, begin, end, dots);
}
