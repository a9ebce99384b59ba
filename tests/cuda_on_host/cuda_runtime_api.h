// Runs CUDA kernels on the CPU, for tests of the device code on machines without a GPU: the source is
// compiled by the host's C++ compiler with this folder in place of the toolkit's headers. Blocks run one
// after the other; a block's threads are fibers that change over at __syncthreads, so barriers mean what they
// mean on a GPU. What it cannot show: races between blocks or inside a warp, and anything about speed.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define FASTNAS_LAUNCH_SHARED(kernel, blocks, threads, bytes, stream, ...) \
  ((void)(stream), cuda_on_host::launch(blocks, threads, bytes, [&] { (kernel)(__VA_ARGS__); }))
#define FASTNAS_DYNAMIC_SHARED(name) unsigned char* name = cuda_on_host::dynamic_shared

using cudaError_t = int;
using cudaStream_t = void*;
inline constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "an error on the host"; }
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
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

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, gridDim, blockDim;

namespace cuda_on_host {

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(64 << 10);
  bool done = false;
};

inline ucontext_t scheduler;
inline Fiber* running = nullptr;
inline void (*body)(const void*);
inline const void* body_argument;
inline unsigned char* dynamic_shared;

inline void enter() {
  body(body_argument);
  running->done = true;
}

template <class Body>
void run_block(unsigned threads, const Body& run) {
  body = [](const void* argument) { (*static_cast<const Body*>(argument))(); };
  body_argument = &run;
  std::vector<Fiber> fibers(threads);
  for (Fiber& fiber : fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, enter, 0);
  }
  for (bool any = true; any;) {  // each round takes every thread to its next barrier or its end
    any = false;
    for (unsigned t = 0; t < threads; ++t) {
      if (fibers[t].done) continue;
      any = true;
      running = &fibers[t];
      threadIdx = dim3(t);
      swapcontext(&scheduler, &fibers[t].context);
    }
  }
}

template <class Body>
void launch(dim3 blocks, unsigned threads, size_t shared_bytes, const Body& run) {
  // Poisoned, since on a GPU it holds what the last block left.
  std::vector<unsigned char> shared(shared_bytes + 16, 0xff);
  dynamic_shared = shared.data() + (16 - reinterpret_cast<uintptr_t>(shared.data()) % 16) % 16;
  gridDim = blocks;
  blockDim = dim3(threads);
  for (unsigned z = 0; z < blocks.z; ++z)
    for (unsigned y = 0; y < blocks.y; ++y)
      for (unsigned x = 0; x < blocks.x; ++x) {
        blockIdx = dim3(x, y, z);
        run_block(threads, run);
      }
}

}  // namespace cuda_on_host

inline void __syncthreads() { swapcontext(&cuda_on_host::running->context, &cuda_on_host::scheduler); }
