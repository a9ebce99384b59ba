// A block sums one channel. Roofline: reads N C s bytes, but a channel's pixels lie `pixel` elements apart,
// so that all blocks together read each cache line many times, from the second-level cache. A few biases of a
// search space have this gradient, in evaluation mode alone, so nothing better is worth its lines.
#include "cell/pixel_sum.h"
#include "cuda/device.cuh"

namespace fastnas::cell {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads)
    pixel_sum_kernel(const T* x, int64_t pixel, int64_t pixels, const float* scale, float* out) {
  __shared__ double scratch[kThreads];
  const int c = blockIdx.x;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < pixels; i += kThreads)
    sum += static_cast<double>(cuda::to_float(x[i * pixel + c]));
  sum = cuda::block_sum<kThreads>(sum, scratch);
  if (threadIdx.x == 0) out[c] = static_cast<float>(static_cast<double>(scale[c]) * sum);
}

template <class T>
void launch(const PixelSum& p, cudaStream_t stream) {
  FASTNAS_LAUNCH((pixel_sum_kernel<T>), static_cast<unsigned>(p.channels), kThreads, stream,
                 static_cast<const T*>(p.x), p.pixel, p.pixels, static_cast<const float*>(p.scale),
                 static_cast<float*>(p.out));
}

}  // namespace
}  // namespace fastnas::cell

extern "C" cudaError_t fastnas_sum_pixels(const fastnas::cell::PixelSum* params, void*, cudaStream_t stream) {
  using namespace fastnas::cell;
  if (params->dtype == fastnas::Dtype::float32)
    launch<float>(*params, stream);
  else
    launch<fastnas::cuda::BFloat16>(*params, stream);
  return cudaGetLastError();
}
