// highway_sum: the node of a recurrent supernet, out = sum_j sum_k p_jk (s_j + c_j (f_k(h_j) - s_j)) over S
// sources j and the activations f_k = tanh, relu, sigmoid, identity, with c = sigmoid(raw gate); and its
// gradients. What the binding hands to the kernels.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fastnas::highway_sum {

inline constexpr int64_t kActivations = 4;

// Numbers are elements of `dtype`; all arrays are contiguous.
struct Params {
  const void* mixing;  // (sources, kActivations)
  const void* states;  // (sources, rows, units)
  const void* raw;     // (sources, rows, 2 units), each row the gates, then the values h
  void* out;           // forward: (rows, units)
  const void* grad;    // backward: (rows, units), and the three below, like what they are gradients of
  void* mixing_grad;
  void* states_grad;
  void* raw_grad;
  int64_t sources, rows, units;
  Dtype dtype;  // float32 or float64
};

void forward_cpu(const Params& params);
void backward_cpu(const Params& params);

}  // namespace fastnas::highway_sum
