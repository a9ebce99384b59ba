// A vector of dual numbers (cpu/dual.h): two registers, the values and the tangents of its lanes. Included by
// cpu/vec.h inside a level's namespace: no guard, no includes.

template <class A>
struct DualVec {
  Vec<A> value, tangent;

  FASTNAS_INLINE Dual<A> operator[](int64_t lane) const { return {value[lane], tangent[lane]}; }
};
template <class A>
struct VecOf<Dual<A>> {
  using type = DualVec<A>;
};

// Registers of a vector.
template <class T>
inline constexpr int kRegisters = kIsDual<T> ? 2 : 1;

// A product that is not computed yet: what it is added to takes it as three multiply-adds.
template <class A, class B>
struct DualProduct {
  DualVec<A> a;
  B b;  // a vector, or one number for all lanes

  FASTNAS_INLINE operator DualVec<A>() const {
    return {a.value * b.value, a.value * b.tangent + a.tangent * b.value};
  }
};

template <class A>
FASTNAS_INLINE DualProduct<A, DualVec<A>> operator*(const DualVec<A>& a, const DualVec<A>& b) {
  return {a, b};
}
template <class A>
FASTNAS_INLINE DualProduct<A, Dual<A>> operator*(const DualVec<A>& a, const Dual<A>& b) {
  return {a, b};
}
template <class A>
FASTNAS_INLINE DualVec<A> operator*(const DualVec<A>& a, A b) {
  return {a.value * b, a.tangent * b};
}

template <class A>
FASTNAS_INLINE DualVec<A> operator+(const DualVec<A>& a, const DualVec<A>& b) {
  return {a.value + b.value, a.tangent + b.tangent};
}
template <class A, class B>
FASTNAS_INLINE DualVec<A> operator+(const DualVec<A>& sum, const DualProduct<A, B>& p) {
  return {sum.value + p.a.value * p.b.value,
          (sum.tangent + p.a.value * p.b.tangent) + p.a.tangent * p.b.value};
}
template <class A>
FASTNAS_INLINE DualVec<A> operator+(const DualVec<A>& a, A b) {
  return {a.value + b, a.tangent};
}
template <class A>
FASTNAS_INLINE DualVec<A> operator-(const DualVec<A>& a, const DualVec<A>& b) {
  return {a.value - b.value, a.tangent - b.tangent};
}
template <class A>
FASTNAS_INLINE DualVec<A> operator-(const DualVec<A>& a, A b) {
  return {a.value - b, a.tangent};
}
// Half by half: what is assigned as a whole goes through memory.
template <class A>
FASTNAS_INLINE void operator+=(DualVec<A>& sum, const DualVec<A>& summand) {
  sum.value += summand.value;
  sum.tangent += summand.tangent;
}
template <class A, class B>
FASTNAS_INLINE void operator+=(DualVec<A>& sum, const DualProduct<A, B>& p) {
  sum.value += p.a.value * p.b.value;
  sum.tangent += p.a.value * p.b.tangent;
  sum.tangent += p.a.tangent * p.b.value;
}

// Dual numbers compare as their values do.
template <class A>
FASTNAS_INLINE auto operator<(const DualVec<A>& a, const DualVec<A>& b) {
  return a.value < b.value;
}
template <class A>
FASTNAS_INLINE auto operator>(const DualVec<A>& a, const DualVec<A>& b) {
  return a.value > b.value;
}
template <class A>
FASTNAS_INLINE auto operator==(const DualVec<A>& a, const DualVec<A>& b) {
  return a.value == b.value;
}
template <class A>
FASTNAS_INLINE auto operator!=(const DualVec<A>& a, const DualVec<A>& b) {
  return a.value != b.value;
}

// Lane by lane, a where the comparison holds, else b.
template <class Mask, class V>
FASTNAS_INLINE V select(Mask holds, V a, V b) {
  return holds ? a : b;
}
template <class Mask, class A>
FASTNAS_INLINE DualVec<A> select(Mask holds, DualVec<A> a, DualVec<A> b) {
  return {holds ? a.value : b.value, holds ? a.tangent : b.tangent};
}

// max(x, 0); a NaN stays one. Its derivative at 0 is 0.
template <class V>
FASTNAS_INLINE V relu(V x) {
  const V zero = {};
  return x < zero ? zero : x;
}
template <class A>
FASTNAS_INLINE DualVec<A> relu(DualVec<A> x) {
  const Vec<A> zero = {};
  return {relu(x.value), x.value > zero ? x.tangent : zero};
}

// max(x, floor), the floor being real; as relu does. And where x is above it.
template <class V>
FASTNAS_INLINE V max_of(V x, V floor) {
  return x < floor ? floor : x;
}
template <class A>
FASTNAS_INLINE DualVec<A> max_of(DualVec<A> x, Vec<A> floor) {
  const Vec<A> zero = {};
  return {max_of(x.value, floor), x.value > floor ? x.tangent : zero};
}
template <class V>
FASTNAS_INLINE auto is_above(V x, V floor) {
  return x > floor;
}
template <class A>
FASTNAS_INLINE auto is_above(DualVec<A> x, Vec<A> floor) {
  return x.value > floor;
}

// Lanes I... of two vectors, those of b counted on from a's last. GCC 11 knows its own builtin only, Clang
// the other.
template <size_t... I, class V>
FASTNAS_INLINE V pick(V a, V b) {
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, I...);
#else
  using Lanes = decltype(a == b);
  return __builtin_shuffle(a, b, Lanes{I...});
#endif
}

// Lanes that lie one after the other, value and tangent each, out of two registers and back.
template <class A, size_t... I>
FASTNAS_INLINE DualVec<A> deinterleave(Vec<A> first, Vec<A> second, std::index_sequence<I...>) {
  return {pick<2 * I...>(first, second), pick<2 * I + 1 ...>(first, second)};
}
template <class A, size_t... I>
FASTNAS_INLINE DualVec<A> interleave(DualVec<A> x, std::index_sequence<I...>) {
  constexpr size_t lanes = sizeof...(I);
  return {pick<I / 2 + I % 2 * lanes...>(x.value, x.tangent),
          pick<(lanes + I) / 2 + I % 2 * lanes...>(x.value, x.tangent)};
}

// Of a tensor's elements, to a vector and back; as they are if they are not dual.
template <class T>
FASTNAS_INLINE Vec<T> from_tensor(Vec<T> lanes) {
  if constexpr (kIsDual<T>)
    return deinterleave<Real<T>>(lanes.value, lanes.tangent, std::make_index_sequence<kLanes<T>>());
  else
    return lanes;
}
template <class T>
FASTNAS_INLINE Vec<T> to_tensor(Vec<T> lanes) {
  if constexpr (kIsDual<T>)
    return interleave<Real<T>>(lanes, std::make_index_sequence<kLanes<T>>());
  else
    return lanes;
}

// Element i of memory in blocks.
template <class T>
FASTNAS_INLINE T element(const T* blocks, int64_t i) {
  if constexpr (kIsDual<T>) {
    const Real<T>* value = &blocks[i & -kLanes<T>].value + (i & (kLanes<T> - 1));
    return {value[0], value[kLanes<T>]};
  } else {
    return blocks[i];
  }
}
