// |x|, the Euclidean norm of a flat vector, accumulated in double.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dtype.h"

#if defined(FASTNAS_WITH_CUDA) || defined(__CUDACC__)
#include <cuda_runtime_api.h>
#endif

namespace fastnas::vector_norm {

struct Params {
  const void* vector;
  double* norm;  // one number, on the vector's device
  int64_t n;
  Dtype dtype;  // float32 or float64
};

void norm_cpu(const Params& params);

// CPU: a norm is the root of its chunks' sums, added up from the first to the last. Fixed, so that the order
// of the sum is.
inline constexpr int64_t kChunk = 16384;

// CPU: the sum of the squares of one chunk, x[begin] to x[end - 1]. For float and double.
template <class T>
double squares(const T* x, int64_t begin, int64_t end);

// CPU: |x| from the sums of its chunks.
double norm_from(const std::vector<double>& chunks);

// CUDA: blocks that share the sum. A function of n alone, so that its order is too.
inline int64_t blocks(int64_t n) { return std::min<int64_t>((n + 1023) / 1024, 1024); }

// CUDA: bytes of workspace, each block's share of the sum of squares.
inline int64_t workspace(int64_t n) { return static_cast<int64_t>(sizeof(double)) * blocks(n); }

}  // namespace fastnas::vector_norm

#if defined(FASTNAS_WITH_CUDA) || defined(__CUDACC__)
extern "C" cudaError_t fastnas_vector_norm(const fastnas::vector_norm::Params* params, void* workspace,
                                           cudaStream_t stream);
#endif
