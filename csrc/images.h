// Batches of images in channels-last memory, as the supernet's ops take them: (N, C, H, W) tensors whose
// channels are neighbours, whose pixels lie `pixel` elements apart and whose rows and images follow each
// other. A slice of the channels of a channels-last tensor is one, too, and every tensor without elements.
#pragma once

#include "cpu/allocator.h"
#include "cuda/runtime.h"
#include "memory.h"
#include "stable.h"

namespace fastnas {

struct Images {
  void* data;
  int64_t count, channels, height, width, pixel;

  // No product of the sizes: of a batch without elements it may not be a number.
  bool has_pixels() const { return count > 0 && height > 0 && width > 0; }
  int64_t pixels() const { return has_pixels() && channels > 0 ? count * height * width : 0; }
};

// How many of a side's pixels a stride takes.
inline int64_t strided(int64_t side, int64_t stride) { return side == 0 ? 0 : (side - 1) / stride + 1; }

// What kernels for a GPU count in 32 bits, and their grids in less.
inline void check_fits_gpu(const Tensor& tensor, const Images& images, const char* op, const char* name) {
  constexpr int64_t most_pixels = int64_t(1) << 30, most_channels = int64_t(1) << 16;
  FASTNAS_CHECK(!cuda::on_gpu(tensor) || (images.pixels() <= most_pixels && images.channels <= most_channels),
                op, name, " must have at most 2^30 pixels and 2^16 channels on CUDA, got ",
                shape_text(tensor));
}

// Raises unless `tensor` is such a batch. `op` and `name` say whose argument it is.
inline Images images_of(const Tensor& tensor, const char* op, const char* name) {
  FASTNAS_CHECK(tensor.dim() == 4, op, name, " must have shape (N, C, H, W), got ", shape_text(tensor));
  Images images{tensor.data_ptr(), tensor.size(0), tensor.size(1), tensor.size(2), tensor.size(3), 0};
  if (tensor.numel() == 0) {
    images.pixel = images.channels;
    return images;
  }
  // Strides of dimensions of length one mean nothing.
  if (images.width > 1)
    images.pixel = tensor.stride(3);
  else if (images.height > 1)
    images.pixel = tensor.stride(2);
  else
    images.pixel = images.count > 1 ? tensor.stride(0) : images.channels;
  const bool fits = (images.channels <= 1 || tensor.stride(1) == 1) && images.pixel >= images.channels &&
                    (images.height <= 1 || tensor.stride(2) == images.width * images.pixel) &&
                    (images.count <= 1 || tensor.stride(0) == images.height * images.width * images.pixel);
  FASTNAS_CHECK(fits, op, name, " must be in channels_last memory");
  check_stored(tensor, op, name);
  check_fits_gpu(tensor, images, op, name);
  return images;
}

// As `images_of`, and of the dtype and device of `model`.
inline Images images_like(const Tensor& tensor, const Tensor& model, const char* op, const char* name) {
  FASTNAS_CHECK(tensor.scalar_type() == model.scalar_type() && same_device(tensor, model), op, name,
                " must be ", dtype_text(model), " on ", device_text(model), ", got ", dtype_text(tensor),
                " on ", device_text(tensor));
  return images_of(tensor, op, name);
}

inline Region region_of(const char* name, const Images& images, const Tensor& model) {
  if (images.pixels() == 0) return {name, nullptr, 0, 0, 0};
  const int64_t element = static_cast<int64_t>(model.element_size());
  return {name, static_cast<const char*>(images.data), images.channels * element, images.pixel * element,
          images.pixels()};
}

inline void check_size(const Images& images, int64_t count, int64_t channels, int64_t height, int64_t width,
                       const char* op, const char* name) {
  FASTNAS_CHECK(images.count == count && images.channels == channels && images.height == height &&
                    images.width == width,
                op, name, " must have shape (", count, ", ", channels, ", ", height, ", ", width, "), got (",
                images.count, ", ", images.channels, ", ", images.height, ", ", images.width, ")");
}

// (N, height, width, channels) as (N, channels, height, width) in channels-last memory.
inline Tensor channels_last(const Tensor& rows) {
  return torch::stable::transpose(torch::stable::transpose(rows, 1, 3), 2, 3);
}

// An uninitialised channels-last batch (N, C, H, W) of the dtype and device of `model`.
inline Tensor new_images(const Tensor& model, int64_t count, int64_t channels, int64_t height,
                         int64_t width) {
  const Tensor rows = torch::stable::new_empty(model, {count, height, width, channels});
  cpu::advise_new_heap();
  return channels_last(rows);
}

// Raises unless an op on images runs on tensors like this one: float32 or float64 on the CPU, also as dual
// numbers (cpu/dual.h), float32 or bfloat16 on a GPU.
inline void check_runs(const Tensor& model, const char* op, const char* name) {
  cuda::check_built(op, model);
  const bool gpu = cuda::on_gpu(model);
  FASTNAS_CHECK(gpu || model.is_cpu(), op, name, " must be on the CPU or on CUDA, got ", device_text(model));
  const ScalarType dtype = model.scalar_type(), other = gpu ? ScalarType::BFloat16 : ScalarType::Double;
  const bool dual = dtype == ScalarType::ComplexFloat || dtype == ScalarType::ComplexDouble;
  FASTNAS_CHECK(dtype == ScalarType::Float || dtype == other || (dual && !gpu), op, name,
                " must be float32 or ", gpu ? "bfloat16 on CUDA" : "float64 on the CPU", ", got ",
                dtype_text(model));
}

// The dtype of the numbers that go with images: weights, statistics, coefficients.
inline ScalarType numbers_type(const Tensor& images) {
  return images.scalar_type() == ScalarType::BFloat16 ? ScalarType::Float : images.scalar_type();
}

// A contiguous tensor of `dtype` on the device of `model`, with the given shape.
inline void check_shape(const Tensor& tensor, const Tensor& model, ScalarType dtype,
                        const std::vector<int64_t>& shape, const char* op, const char* name) {
  bool fits = tensor.dim() == static_cast<int64_t>(shape.size()) && tensor.is_contiguous() &&
              tensor.scalar_type() == dtype && same_device(tensor, model);
  std::string text;
  for (size_t d = 0; d < shape.size(); ++d) {
    fits = fits && tensor.size(static_cast<int64_t>(d)) == shape[d];
    text += (d ? ", " : "") + std::to_string(shape[d]);
  }
  FASTNAS_CHECK(fits, op, name, " must be contiguous, of shape (", text, "), ", dtype_text(dtype), " on ",
                device_text(model), "; got ", shape_text(tensor), ", ", dtype_text(tensor), " on ",
                device_text(tensor));
  check_stored(tensor, op, name);
}

// Numbers for the images `model`.
inline void check_dense(const Tensor& tensor, const Tensor& model, const std::vector<int64_t>& shape,
                        const char* op, const char* name) {
  check_shape(tensor, model, numbers_type(model), shape, op, name);
}

// Images like `model`, as (N, height, width, channels).
inline void check_rows(const Tensor& tensor, const Tensor& model, const std::vector<int64_t>& shape,
                       const char* op, const char* name) {
  check_shape(tensor, model, model.scalar_type(), shape, op, name);
}

}  // namespace fastnas
