// Dual numbers a + a' e with e e = 0: a value and its tangent, the derivative along a direction. A kernel
// over dual numbers computes what it computes, and the exact derivative of all of it beside it
// (docs/exact-products.md). In tensors, complex64 and complex128 hold them: the real part is the value, the
// imaginary one the tangent.
//
// Memory of a kernel's own holds them in blocks, the values of a vector's lanes and then their tangents, as
// cpu/vec.h loads and stores them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cpu/capability.h"

namespace fastnas::cpu {

template <class A>
struct Dual {
  A value, tangent;

  Dual() = default;
  constexpr Dual(A value, A tangent) : value(value), tangent(tangent) {}
  template <class B, class = std::enable_if_t<std::is_arithmetic_v<B>>>
  constexpr Dual(B number) : value(static_cast<A>(number)), tangent(0) {}
  template <class B>
  explicit constexpr Dual(const Dual<B>& other)
      : value(static_cast<A>(other.value)), tangent(static_cast<A>(other.tangent)) {}

  Dual& operator+=(const Dual& other) {
    value += other.value;
    tangent += other.tangent;
    return *this;
  }
  friend Dual operator-(const Dual& a) { return {-a.value, -a.tangent}; }
  friend Dual operator+(const Dual& a, const Dual& b) { return {a.value + b.value, a.tangent + b.tangent}; }
  friend Dual operator-(const Dual& a, const Dual& b) { return {a.value - b.value, a.tangent - b.tangent}; }
  friend Dual operator*(const Dual& a, const Dual& b) {
    return {a.value * b.value, a.value * b.tangent + a.tangent * b.value};
  }
  friend Dual operator/(const Dual& a, const Dual& b) {
    const A quotient = a.value / b.value;
    return {quotient, (a.tangent - quotient * b.tangent) / b.value};
  }
  friend bool operator<(const Dual& a, const Dual& b) { return a.value < b.value; }
  friend Dual sqrt(const Dual& a) {
    const A root = std::sqrt(a.value);
    return {root, a.tangent / (2 * root)};
  }
};

// The numbers that T is made of: float of float and of Dual<float>.
template <class T>
struct RealOf {
  using type = T;
};
template <class A>
struct RealOf<Dual<A>> {
  using type = A;
};
template <class T>
using Real = typename RealOf<T>::type;

template <class T>
inline constexpr bool kIsDual = !std::is_same_v<T, Real<T>>;

// What sums over many pixels are kept in: double, or Dual<double>.
template <class T>
using Wide = std::conditional_t<kIsDual<T>, Dual<double>, double>;

// 1 / sqrt(variance + eps).
template <class T>
inline Wide<T> rstd_of(const T& variance, double eps) {
  using std::sqrt;
  return 1.0 / sqrt(static_cast<Wide<T>>(variance) + eps);
}

// Lanes of a vector of the level in force.
template <class T>
inline int64_t lanes_in_force() {
  return vector_bytes() / static_cast<int64_t>(sizeof(Real<T>));
}

// `size` elements, a whole number of vectors, from one after the other into blocks; numbers that are not dual
// are in blocks anyway.
template <class T>
inline void to_blocks(T* elements, int64_t size) {
  if constexpr (kIsDual<T>) {
    T block[kMaxLanes];
    const int64_t lanes = lanes_in_force<T>();
    for (int64_t begin = 0; begin < size; begin += lanes) {
      std::copy_n(elements + begin, lanes, block);
      Real<T>* to = &elements[begin].value;
      for (int64_t lane = 0; lane < lanes; ++lane) {
        to[lane] = block[lane].value;
        to[lanes + lane] = block[lane].tangent;
      }
    }
  }
}

// The inverse of to_blocks.
template <class T>
inline void from_blocks(T* elements, int64_t size) {
  if constexpr (kIsDual<T>) {
    T block[kMaxLanes];
    const int64_t lanes = lanes_in_force<T>();
    for (int64_t begin = 0; begin < size; begin += lanes) {
      const Real<T>* from = &elements[begin].value;
      for (int64_t lane = 0; lane < lanes; ++lane) block[lane] = {from[lane], from[lanes + lane]};
      std::copy_n(block, lanes, elements + begin);
    }
  }
}

}  // namespace fastnas::cpu
