// highway_sum on some rows, compiled once per CPU level by cpu/for_each_level.h. Bound by memory on many
// cores, by its two exponentials on one.

// Of T: the integers of its size, and how its exponent lies in them.
template <class T>
struct Bits {
  using Integer = int32_t;
  static constexpr int mantissa = 23, bias = 127, terms = 8;
  static constexpr float lowest = -87.0f;
  static constexpr float magic = 12582912.0f;  // 1.5 2^23: to add it rounds to a whole number
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
};
template <>
struct Bits<double> {
  using Integer = int64_t;
  static constexpr int mantissa = 52, bias = 1023, terms = 14;
  static constexpr double lowest = -708.0;
  static constexpr double magic = 6755399441055744.0;
  static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
};

// e^x and e^x - 1 for x <= 0, both with small relative errors.
template <class T>
struct Exponential {
  Vec<T> value, less_one;
};

// x = n ln 2 + r with |r| <= ln 2 / 2, e^x = 2^n (1 + p) with Taylor's p = e^r - 1. Below where 2^n is a
// number, that is taken.
template <class T>
FASTNAS_INLINE Exponential<T> exponential(Vec<T> x) {
  using B = Bits<T>;
  x = select(x < B::lowest, Vec<T>{} + B::lowest, x);  // a NaN stays one
  const Vec<T> shifted = x * static_cast<T>(1.4426950408889634) + B::magic;
  const Vec<T> n = shifted - B::magic;
  const Vec<T> r = (x - n * B::ln2_high) - n * B::ln2_low;
  Vec<T> p = Vec<T>{} + static_cast<T>(1.0 / B::terms);
#pragma GCC unroll 16
  for (int k = B::terms - 1; k >= 1; --k) p = (p * r + 1) * static_cast<T>(1.0 / k);
  p *= r;
  typedef typename B::Integer Integer;
  typedef Integer Integers __attribute__((vector_size(FASTNAS_VEC_BYTES)));
  const Integers whole = (Integers)shifted - (Integers)(Vec<T>{} + B::magic);
  const Vec<T> power = (Vec<T>)((whole + B::bias) << B::mantissa);
  return {power * p + power, power * p + (power - 1)};
}

// What of a unit's raw numbers both directions need.
template <class T>
struct Unit {
  Vec<T> gate, tanh, relu, sigmoid, value;
};

// sigmoid(|x|) = 1 / (1 + t) and tanh(|x|) = (1 - t)(1 + t) / (1 + t^2) with t = e^-|x|.
template <class T>
FASTNAS_INLINE Unit<T> unit_of(Vec<T> gate, Vec<T> value) {
  const Vec<T> zero = {}, one = zero + 1;
  const auto opens = gate > zero, positive = value > zero;
  const Vec<T> s = exponential<T>(select(opens, -gate, gate)).value;
  const Exponential<T> e = exponential<T>(select(positive, -value, value));
  const Vec<T> t = e.value;
  const Vec<T> tanh = -e.less_one * (one + t) / (one + t * t);
  return {select(opens, one, s) / (one + s), select(positive, tanh, -tanh), select(value > zero, value, zero),
          select(positive, one, t) / (one + t), value};
}

template <class T>
FASTNAS_INLINE Vec<T> load_some(const T* from, int64_t count) {
  return count == kLanes<T> ? load(from) : load_first(from, count);
}

template <class T>
FASTNAS_INLINE void store_some(T* to, Vec<T> values, int64_t count) {
  if (count == kLanes<T>)
    store(to, values);
  else
    store_first(to, values, count);
}

// out = sum_j P_j (1 - c) s + c (sum_k p_jk f_k(h)), P_j = sum_k p_jk, accumulated over j in order.
template <class T>
void forward_rows(const Params& p, int64_t begin, int64_t end) {
  const int64_t lanes = kLanes<T>, plane = p.rows * p.units;
  for (int64_t row = begin; row < end; ++row)
    for (int64_t i = 0; i < p.units; i += lanes) {
      const int64_t count = std::min(lanes, p.units - i);
      Vec<T> sum = {};
      for (int64_t j = 0; j < p.sources; ++j) {
        const T* mix = static_cast<const T*>(p.mixing) + j * kActivations;
        const T* raw = static_cast<const T*>(p.raw) + 2 * (j * plane + row * p.units) + i;
        const Vec<T> state =
            load_some(static_cast<const T*>(p.states) + j * plane + row * p.units + i, count);
        const Unit<T> u = unit_of<T>(load_some(raw, count), load_some(raw + p.units, count));
        const Vec<T> mixed = mix[0] * u.tanh + mix[1] * u.relu + mix[2] * u.sigmoid + mix[3] * u.value;
        const T total = (mix[0] + mix[1]) + (mix[2] + mix[3]);
        sum += total * state + u.gate * (mixed - total * state);
      }
      store_some(static_cast<T*>(p.out) + row * p.units + i, sum, count);
    }
}

// With a = sum_k p_jk f_k(h): d s = g P (1 - c), d gate = g (a - P s) c (1 - c), d h = g c sum_k p_jk
// f_k'(h), and d p_jk = sum g (s + c (f_k(h) - s)), whose share of these rows is added to `sums`.
template <class T>
void backward_rows(const Params& p, int64_t begin, int64_t end, double* sums) {
  const int64_t lanes = kLanes<T>, plane = p.rows * p.units;
  for (int64_t j = 0; j < p.sources; ++j) {
    const T* mix = static_cast<const T*>(p.mixing) + j * kActivations;
    const T total = (mix[0] + mix[1]) + (mix[2] + mix[3]);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = j * plane + row * p.units;
      Vec<T> share[kActivations] = {};
      for (int64_t i = 0; i < p.units; i += lanes) {
        const int64_t count = std::min(lanes, p.units - i);
        const T* raw = static_cast<const T*>(p.raw) + 2 * at + i;
        T* raw_grad = static_cast<T*>(p.raw_grad) + 2 * at + i;
        const Vec<T> g = load_some(static_cast<const T*>(p.grad) + row * p.units + i, count);
        const Vec<T> s = load_some(static_cast<const T*>(p.states) + at + i, count);
        const Unit<T> u = unit_of<T>(load_some(raw, count), load_some(raw + p.units, count));
        const Vec<T> zero = {}, one = zero + 1, closed = one - u.gate, through = g * u.gate;
        const Vec<T> mixed = mix[0] * u.tanh + mix[1] * u.relu + mix[2] * u.sigmoid + mix[3] * u.value;
        const Vec<T> slope = mix[0] * (one - u.tanh * u.tanh) + select(u.value > zero, zero + mix[1], zero) +
                             mix[2] * (u.sigmoid * (one - u.sigmoid)) + mix[3];
        store_some(static_cast<T*>(p.states_grad) + at + i, total * (g * closed), count);
        store_some(raw_grad, (mixed - total * s) * (through * closed), count);
        store_some(raw_grad + p.units, slope * through, count);
        const Vec<T> kept = g * closed * s;
        share[0] += kept + through * u.tanh;
        share[1] += kept + through * u.relu;
        share[2] += kept + through * u.sigmoid;
        share[3] += kept + through * u.value;
      }
      for (int64_t k = 0; k < kActivations; ++k) sums[j * kActivations + k] += sum_lanes(share[k]);
    }
  }
}
