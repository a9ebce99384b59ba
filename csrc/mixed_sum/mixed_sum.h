// mixed_sum: out = sum_k w_k x_k over K branches of n elements each, and its gradients
//   d w_k = <g, x_k>,   d x_k = w_k g.
// What the binding hands to the kernels. All arrays of n elements are flat memory in one and the same layout.
#pragma once

#include <algorithm>
#include <cstdint>

#include "dtype.h"

#if defined(FASTNAS_WITH_CUDA) || defined(__CUDACC__)
#include <cuda_runtime_api.h>
#endif

namespace fastnas::mixed_sum {

struct ForwardParams {
  const void* weights;          // K numbers of weights_dtype, on the tensors' device
  const void* const* branches;  // K pointers, an array on the host
  void* out;
  int64_t branch_count;
  int64_t n;
  Dtype dtype;          // of branches and out
  Dtype weights_dtype;  // dtype, or float32 with bfloat16 branches
};

struct BackwardParams {
  const void* grad;
  const void* weights;
  const void* const* branches;  // null: the weights' gradient is not wanted
  void* const* branch_grads;    // K pointers, null where that gradient is not wanted
  void* weights_grad;           // K numbers of weights_dtype; null with `branches`
  int64_t branch_count;
  int64_t n;
  Dtype dtype;
  Dtype weights_dtype;
};

void forward_cpu(const ForwardParams& params);
void backward_cpu(const BackwardParams& params);

// CUDA: branches per launch, whose pointers travel in the kernel's argument.
inline constexpr int kTableSize = 128;

// CUDA: blocks that share the sum over n. A function of n alone, so that its order is too.
inline int64_t backward_blocks(int64_t n) { return std::min<int64_t>((n + 1023) / 1024, 1024); }

// CUDA: bytes of workspace, which holds floats. Forward: running sums, where the branches need more than one
// launch. Backward: each block's share of each <g, x_k>.
inline int64_t forward_workspace(const ForwardParams& p) { return p.branch_count > kTableSize ? 4 * p.n : 0; }
inline int64_t backward_workspace(const BackwardParams& p) {
  return p.branches ? 4 * p.branch_count * backward_blocks(p.n) : 0;
}

}  // namespace fastnas::mixed_sum

#if defined(FASTNAS_WITH_CUDA) || defined(__CUDACC__)
extern "C" {
cudaError_t fastnas_mixed_sum_forward(const fastnas::mixed_sum::ForwardParams* params, void* workspace,
                                      cudaStream_t stream);
cudaError_t fastnas_mixed_sum_backward(const fastnas::mixed_sum::BackwardParams* params, void* workspace,
                                       cudaStream_t stream);
}
#endif
