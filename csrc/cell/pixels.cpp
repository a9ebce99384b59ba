#include "cell/pixels.h"

#include <cstring>

#include "cell/pixel_sum.h"

namespace fastnas::cell {
namespace {

char* pixel_of(const Images& images, int64_t i, int64_t element) {
  return static_cast<char*>(images.data) + i * images.pixel * element;
}

}  // namespace

void fill_zero(void* numbers, int64_t bytes, const Tensor& model) {
  if (!cuda::on_gpu(model)) {
    std::memset(numbers, 0, bytes);
    return;
  }
#ifdef FASTNAS_WITH_CUDA
  const cuda::DeviceGuard guard(model);
  cuda::check("cell", cudaMemsetAsync(numbers, 0, bytes, cuda::current_stream(model)));
#endif
}

void fill_zero(const Images& images, const Tensor& model) {
  const int64_t element = size_of(kernel_dtype(model)), row = images.channels * element;
  if (images.pixel == images.channels) return fill_zero(images.data, images.pixels() * row, model);
  if (!cuda::on_gpu(model)) {
    for (int64_t i = 0; i < images.pixels(); ++i) std::memset(pixel_of(images, i, element), 0, row);
    return;
  }
#ifdef FASTNAS_WITH_CUDA
  const cuda::DeviceGuard guard(model);
  cuda::check("cell", cudaMemset2DAsync(images.data, images.pixel * element, 0, row, images.pixels(),
                                        cuda::current_stream(model)));
#endif
}

void copy(const Images& from, const Images& to, const Tensor& model) {
  const int64_t element = size_of(kernel_dtype(model)), row = from.channels * element;
  if (!cuda::on_gpu(model)) {
    for (int64_t i = 0; i < from.pixels(); ++i)
      std::memcpy(pixel_of(to, i, element), pixel_of(from, i, element), row);
    return;
  }
#ifdef FASTNAS_WITH_CUDA
  const cuda::DeviceGuard guard(model);
  cuda::check("cell",
              cudaMemcpy2DAsync(to.data, to.pixel * element, from.data, from.pixel * element, row,
                                from.pixels(), cudaMemcpyDeviceToDevice, cuda::current_stream(model)));
#endif
}

void sum_pixels(const Images& images, const void* scale, void* out, const Tensor& model) {
  const PixelSum params{images.data, images.pixel, images.pixels(),    images.channels,
                        scale,       out,          kernel_dtype(model)};
  FASTNAS_RUN("cell", model, 0, fastnas_sum_pixels, sum_pixels_cpu, params);
}

}  // namespace fastnas::cell
