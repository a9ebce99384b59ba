// Pixels of batches of images, on the host.
#pragma once

#include <cstring>

#include "images.h"

namespace fastnas::cell {

inline char* pixel_of(const Images& images, int64_t i, int64_t element) {
  return static_cast<char*>(images.data) + i * images.pixel * element;
}

inline int64_t pixels_of(const Images& images) { return images.count * images.height * images.width; }

inline void fill_zero(const Images& images, int64_t element) {
  if (images.pixel == images.channels) {
    std::memset(images.data, 0, pixels_of(images) * images.channels * element);
  } else {
    for (int64_t i = 0; i < pixels_of(images); ++i)
      std::memset(pixel_of(images, i, element), 0, images.channels * element);
  }
}

inline void copy(const Images& from, const Images& to, int64_t element) {
  for (int64_t i = 0; i < pixels_of(from); ++i)
    std::memcpy(pixel_of(to, i, element), pixel_of(from, i, element), from.channels * element);
}

}  // namespace fastnas::cell
