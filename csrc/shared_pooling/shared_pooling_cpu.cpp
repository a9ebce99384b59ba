// Shared pooling on the CPU: a task is one image; the arithmetic is in the kernel file.
#include <algorithm>
#include <limits>

#include "cpu/aligned.h"
#include "cpu/element.h"
#include "cpu/moments.h"
#include "cpu/parallel.h"
#include "shared_pooling/shared_pooling.h"

namespace fastnas::shared_pooling {

using namespace fastnas::cpu;  // NOLINT: the kernel file is written against cpu's names

constexpr int64_t kRows = 16;  // that backward holds of an image, each as long as a row of outputs
constexpr int64_t kTerms = 8;  // numbers of a channel that it holds of an edge: four of each pooled branch

#define FASTNAS_KERNEL_FILE "shared_pooling/shared_pooling_cpu_kernel.h"
#include "cpu/for_each_level.h"

namespace {

template <class T>
void forward_image(const Params& p, int64_t image, const Moments<T>& average, const Moments<T>& maximum) {
  FASTNAS_DISPATCH(forward_image<T>, p, image, average, maximum);
}

template <class T>
void backward_image(const Params& p, int64_t image, T* memory) {
  FASTNAS_DISPATCH(backward_image<T>, p, image, memory);
}

template <class T>
void store_norms(const Params& p, const BatchMoments<T>& moments, const std::vector<void*>& norms) {
  if (norms.empty()) return;
  T* first = static_cast<T*>(norms.front());
  for (int64_t c = 0; c < p.channels; ++c)
    moments.merge(c, p.out_height * p.out_width, first + c, first + p.channels + c);
  for (size_t k = 1; k < norms.size(); ++k) std::copy_n(first, 2 * p.channels, static_cast<T*>(norms[k]));
}

template <class T>
void forward(const Params& p) {
  const int64_t row = (p.channels + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
  const BatchMoments<T> average(p.images, row), maximum(p.images, row);
  for_each_chunk(p.images, 1, [&](int64_t image, int64_t, int64_t) {
    forward_image(p, image, average.of(image), maximum.of(image));
  });
  store_norms(p, average, p.average_norms);
  store_norms(p, maximum, p.maximum_norms);
}

template <class T>
void backward(const Params& p) {
  const int64_t vectors = kRows * p.out_width + kTerms * static_cast<int64_t>(p.edges.size());
  for_each_task(
      p.images, [&] { return AlignedArray<T>(vectors * kMaxLanes, Fill::none); },
      [&](int64_t image, const AlignedArray<T>& memory) { backward_image(p, image, memory.data()); });
}

}  // namespace

void forward_cpu(const Params& p) {
  with_type(p.dtype, [&](auto type) { forward<typename decltype(type)::type>(p); });
}

void backward_cpu(const Params& p) {
  with_type(p.dtype, [&](auto type) { backward<typename decltype(type)::type>(p); });
}

}  // namespace fastnas::shared_pooling
