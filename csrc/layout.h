// Memory layouts of groups of equally shaped tensors, for ops that are elementwise over the group: where all
// members share one dense layout, kernels run over flat memory and no member is copied.
#pragma once

#include <algorithm>
#include <numeric>

#include "stable.h"

namespace fastnas {

// Equal strides wherever a stride matters, which is in dimensions longer than one.
inline bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

// Whether the elements fill one block of memory, each address once, in whatever order of dimensions.
inline bool is_dense(const Tensor& tensor) {
  if (tensor.numel() == 0) return true;
  std::vector<int64_t> order(tensor.dim());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](int64_t a, int64_t b) { return tensor.stride(a) < tensor.stride(b); });
  int64_t expected = 1;
  for (int64_t d : order) {
    if (tensor.size(d) == 1) continue;
    if (tensor.stride(d) != expected) return false;
    expected *= tensor.size(d);
  }
  return true;
}

// The tensors themselves where they share one dense layout, else contiguous ones (copies where needed).
inline std::vector<Tensor> in_one_layout(std::vector<Tensor> tensors) {
  const Tensor& first = tensors.front();
  const bool shared = is_dense(first) && std::all_of(tensors.begin(), tensors.end(),
                                                     [&](const Tensor& t) { return same_strides(t, first); });
  if (shared) return tensors;
  for (Tensor& tensor : tensors) tensor = torch::stable::contiguous(tensor);
  return tensors;
}

// `tensor` in the layout of `model`, which is dense: itself where it has that layout already.
inline Tensor in_layout_of(const Tensor& tensor, const Tensor& model) {
  if (same_strides(tensor, model)) return tensor;
  Tensor copy = torch::stable::empty_like(model);
  torch::stable::copy_(copy, tensor);
  return copy;
}

}  // namespace fastnas
