// Runs CUDA kernels on the CPU, for tests of the device code on machines without a GPU: the source is
// compiled by the host's C++ compiler with this folder in place of the toolkit's headers. Blocks run one
// after the other; a block's threads are fibers that change over at __syncthreads, so barriers mean what they
// mean on a GPU, and one that some thread does not meet is an error (blocks.h).
//
// Compiled with -fsanitize=thread every fiber is a thread to ThreadSanitizer. Threads of a block are ordered
// by their barriers alone, blocks of a launch not at all, launches by the stream; a pair of accesses that
// nothing orders is reported, whether or not it went wrong this time.
//
// What it cannot show: what needs a warp (threads of one are races here, too, unless a barrier parts them),
// hardware limits but those of a launch, memory coalescing, and anything about speed.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "blocks.h"

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define FASTNAS_LAUNCH_SHARED(kernel, blocks, threads, bytes, stream, ...)                     \
  ((void)(stream), cuda_on_host::launch(cuda_on_host::address(kernel), blocks, threads, bytes, \
                                        [&] { (kernel)(__VA_ARGS__); }))
#define FASTNAS_DYNAMIC_SHARED(name) unsigned char* name = cuda_on_host::dynamic_shared

// Each block has memory of its own where ThreadSanitizer watches, since it would take the next block's use of
// the same for a race (a block is a thread of the system there).
#ifdef __SANITIZE_THREAD__
#define __shared__ static thread_local
#else
#define __shared__ static
#endif

using cudaError_t = int;
using cudaStream_t = void*;
inline constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "an error on the host"; }
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute, int bytes) {
  return cuda_on_host::allow_shared(cuda_on_host::address(kernel), bytes) ? cudaSuccess
                                                                          : cudaErrorInvalidValue;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemset2DAsync(void* to, size_t pitch, int value, size_t width, size_t height,
                                     cudaStream_t) {
  for (size_t row = 0; row < height; ++row) std::memset(static_cast<char*>(to) + row * pitch, value, width);
  return cudaSuccess;
}
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice };
inline cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                                     size_t width, size_t height, cudaMemcpyKind, cudaStream_t) {
  for (size_t row = 0; row < height; ++row)
    std::memcpy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch,
                width);
  return cudaSuccess;
}

struct float2 {
  float x, y;
};
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

// Where it is called is the barrier's name: the place in the source, not in the compiled code, of which an
// optimiser may make several.
inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  cuda_on_host::wait_at({file, line});
}
