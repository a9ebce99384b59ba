// Which instruction sets the CPU kernels use. Every kernel is compiled once per level into the one binary
// (cpu/for_each_level.h); the level in force is the highest that this CPU has, capped by the environment
// variable FASTNAS_CPU_CAPABILITY = baseline | avx2 | avx512.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#define FASTNAS_X86 1
#else
#define FASTNAS_X86 0
#endif

namespace fastnas::cpu {

enum class Capability : int { baseline, avx2, avx512 };

inline constexpr const char* kCapabilityNames[] = {"baseline", "avx2", "avx512"};

// The highest level that this CPU and its operating system run.
Capability detected_capability();

// The level in force. The environment is read once; throws std::invalid_argument on a name that is no level.
Capability capability();

// Bytes of a vector of the level in force.
inline int64_t vector_bytes() { return int64_t{16} << static_cast<int>(capability()); }

// Lanes of the widest vector of the narrowest type, float32.
inline constexpr int64_t kMaxLanes = 16;

// The body of a function that calls `function` of the level in force: baseline::function(...) and so on, the
// namespaces that for_each_level.h made. Put template arguments without commas into the name:
// forward_chunk<T>.
#if FASTNAS_X86
#define FASTNAS_DISPATCH(function, ...)       \
  switch (::fastnas::cpu::capability()) {     \
    case ::fastnas::cpu::Capability::avx512:  \
      return avx512::function(__VA_ARGS__);   \
    case ::fastnas::cpu::Capability::avx2:    \
      return avx2::function(__VA_ARGS__);     \
    default:                                  \
      return baseline::function(__VA_ARGS__); \
  }
#else
#define FASTNAS_DISPATCH(function, ...) return baseline::function(__VA_ARGS__)
#endif

}  // namespace fastnas::cpu
