// out[c] = scale[c] sum_p x[p, c]: the gradient of a bias behind which statistics are constants.
#pragma once

#include <cstdint>

#include "dtype.h"

#if defined(FASTNAS_WITH_CUDA) || defined(__CUDACC__)
#include <cuda_runtime_api.h>
#endif

namespace fastnas::cell {

struct PixelSum {
  const void* x;
  int64_t pixel, pixels, channels;
  const void* scale;
  void* out;
  Dtype dtype;
};

void sum_pixels_cpu(const PixelSum& params);

}  // namespace fastnas::cell

#if defined(FASTNAS_WITH_CUDA) || defined(__CUDACC__)
extern "C" cudaError_t fastnas_sum_pixels(const fastnas::cell::PixelSum* params, void* workspace,
                                          cudaStream_t stream);
#endif
