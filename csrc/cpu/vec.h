// Vectors of FASTNAS_VEC_BYTES in the compilers' own vector extension, which GCC and Clang lower to whatever
// the level has (one ZMM register, one YMM, one XMM or NEON register). Arithmetic is +, * and friends; a * b
// + c becomes one FMA where there is one. Included by for_each_level.h inside a level's namespace: no guard,
// no includes.

inline constexpr int64_t kVecBytes = FASTNAS_VEC_BYTES;

template <class A>
struct VecOf {
  typedef A type __attribute__((vector_size(FASTNAS_VEC_BYTES)));
};
template <class A>
using Vec = typename VecOf<A>::type;

// Lanes of a vector of the accumulator type A.
template <class A>
inline constexpr int64_t kLanes = kVecBytes / static_cast<int64_t>(sizeof(Real<A>));

#include "cpu/dual_vec.h"

typedef uint16_t VecHalf16 __attribute__((vector_size(FASTNAS_VEC_BYTES / 2)));

// Elements of type T as a vector of their accumulator type A = Accumulator<T>; no alignment is asked for.
// Dual numbers lie in blocks.
template <class T>
FASTNAS_INLINE Vec<Accumulator<T>> load(const T* from) {
  if constexpr (kIsDual<T>) {
    return {load(&from->value), load(&from->value + kLanes<T>)};
  } else {
    Vec<Accumulator<T>> values;
    __builtin_memcpy(&values, from, sizeof(values));
    return values;
  }
}

template <>
FASTNAS_INLINE Vec<float> load<BFloat16>(const BFloat16* from) {
  VecHalf16 bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  return (Vec<float>)(__builtin_convertvector(bits, Vec<uint32_t>) << 16);
}

// A vector of accumulators as elements of type T lie in memory. bfloat16 rounds to nearest, ties to even, and
// a NaN stays a NaN: it keeps its upper bits and gets the quiet bit.
template <class T>
FASTNAS_INLINE auto pack(Vec<Accumulator<T>> values) {
  if constexpr (sizeof(T) != sizeof(BFloat16)) {
    return values;
  } else {
    const Vec<uint32_t> bits = (Vec<uint32_t>)values;
    const Vec<uint32_t> rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Vec<uint32_t> is_nan = (Vec<uint32_t>)(values != values);
    return __builtin_convertvector((is_nan & ((bits >> 16) | 0x40u)) | (~is_nan & rounded), VecHalf16);
  }
}

template <class T>
FASTNAS_INLINE void store(T* to, Vec<Accumulator<T>> values) {
  if constexpr (kIsDual<T>) {
    store(&to->value, values.value);
    store(&to->value + kLanes<T>, values.tangent);
  } else {
    const auto packed = pack<T>(values);
    __builtin_memcpy(to, &packed, sizeof(packed));
  }
}

// As store, past the caches: for outputs too large to be read again before they are evicted, this saves
// reading every line before it is written. `to` must be aligned to the vector (is_stream_aligned); call
// stream_fence() before another thread reads. AddressSanitizer sees no intrinsics: under it this is a plain
// store.
template <class T>
FASTNAS_INLINE void store_streaming(T* to, Vec<Accumulator<T>> values) {
  const auto packed = pack<T>(values);
#ifndef __SANITIZE_ADDRESS__
#if FASTNAS_X86 && FASTNAS_VEC_BYTES >= 64
  if constexpr (sizeof(packed) == 64) return _mm512_stream_si512((__m512i*)to, (__m512i)packed);
#endif
#if FASTNAS_X86 && FASTNAS_VEC_BYTES >= 32
  if constexpr (sizeof(packed) == 32) return _mm256_stream_si256((__m256i*)to, (__m256i)packed);
#endif
#if FASTNAS_X86
  if constexpr (sizeof(packed) == 16) return _mm_stream_si128((__m128i*)to, (__m128i)packed);
#endif
#endif
  __builtin_memcpy(to, &packed, sizeof(packed));
}

// The first `count` < lanes elements, the other lanes zero.
template <class T>
FASTNAS_INLINE Vec<Accumulator<T>> load_first(const T* from, int64_t count) {
  T padded[kLanes<Accumulator<T>>] = {};
  __builtin_memcpy(padded, from, static_cast<size_t>(count) * sizeof(T));
  return load(padded);
}

template <class T>
FASTNAS_INLINE void store_first(T* to, Vec<Accumulator<T>> values, int64_t count) {
  T padded[kLanes<Accumulator<T>>];
  store(padded, values);
  __builtin_memcpy(to, padded, static_cast<size_t>(count) * sizeof(T));
}

// The sum of the lanes, in double and from the first lane to the last.
template <class V>
FASTNAS_INLINE double sum_lanes(const V& values) {
  double total = 0;
  for (size_t lane = 0; lane < sizeof(V) / sizeof(values[0]); ++lane)
    total += static_cast<double>(values[lane]);
  return total;
}
