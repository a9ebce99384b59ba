// Pixels of batches of images, on the device of `model`, whose dtype is theirs.
#pragma once

#include "images.h"

namespace fastnas::cell {

void fill_zero(const Images& images, const Tensor& model);
void fill_zero(void* numbers, int64_t bytes, const Tensor& model);
void copy(const Images& from, const Images& to, const Tensor& model);

// out[c] = scale[c] times the sum of channel c over all pixels.
void sum_pixels(const Images& images, const void* scale, void* out, const Tensor& model);

}  // namespace fastnas::cell
