// Compiles the file named by FASTNAS_KERNEL_FILE once per CPU level, each time with that level's instruction
// sets and inside a namespace named after it (baseline, avx2, avx512). The kernel file is written once, on
// cpu/vec.h's vectors of kVecBytes, and includes nothing: whatever it needs from headers, the including file
// includes first.
//
//   #define FASTNAS_KERNEL_FILE "mixed_sum/mixed_sum_cpu_kernel.h"
//   #include "cpu/for_each_level.h"
//
// No include guard: every op includes it once.
#define FASTNAS_VEC_BYTES 16
namespace baseline {
#include "cpu/vec.h"
#include FASTNAS_KERNEL_FILE
}  // namespace baseline
#undef FASTNAS_VEC_BYTES

#if FASTNAS_X86

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define FASTNAS_VEC_BYTES 32
namespace avx2 {
#include "cpu/vec.h"
#include FASTNAS_KERNEL_FILE
}  // namespace avx2
#undef FASTNAS_VEC_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#endif
#define FASTNAS_VEC_BYTES 64
namespace avx512 {
#include "cpu/vec.h"
#include FASTNAS_KERNEL_FILE
}  // namespace avx512
#undef FASTNAS_VEC_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // FASTNAS_X86
#undef FASTNAS_KERNEL_FILE
