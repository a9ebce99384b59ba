// The normalised mixed sum: out = sum_k w_k (x_k - mean_k) rstd_k per channel, each branch's BatchNorm folded
// into the weighted sum of a mixed operation. Backward reads g and all x_k once:
//   d w_k = sum_c rstd_k <g, x_k - mean_k>_c
//   d x_k = a (g + b (x_k - mean_k) + c),  a = w_k rstd_k,  b = -rstd_k^2 <g, x_k - mean_k> / n,  c = -<g, 1>
//   / n
// (a outside: the terms in the bracket nearly cancel where n is small, and a's rounding must not come between
// them) and leaves a, b, c per channel for whoever needs d x_k.
//
// A branch may be rectified, w_k ReLU(z_k) in place of w_k (x_k - mean_k) rstd_k, with z_k = scale_k (x_k -
// mean_k) rstd_k + shift_k. Then g_k, which is g where z_k > 0 and 0 elsewhere, stands in for g, and is
// written out, since d x_k needs it:
//   d w_k = sum_c (scale_k rstd_k <g_k, x_k - mean_k> + shift_k <g_k, 1>)_c
//   d scale_k = w_k rstd_k <g_k, x_k - mean_k>,  d shift_k = w_k <g_k, 1>
//   d x_k = a (g_k + b (x_k - mean_k) + c),  a = w_k scale_k rstd_k,  b and c as above with g_k
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dtype.h"

#if defined(FASTNAS_WITH_CUDA) || defined(__CUDACC__)
#include <cuda_runtime_api.h>
#endif

namespace fastnas::normalised_mixed_sum {

struct Branch {
  const void* x;  // pixels `pixel` elements apart
  int64_t pixel;
  // Numbers of the images' dtype; of float32 where that is bfloat16.
  const void* norm;    // mean (C), variance (C); null: x is taken as it is
  const void* weight;  // one number; null: 1
  void* coefficients;  // backward: a, b, c (3, C); null: not normalised
  void* weight_grad;   // backward: one number, written; null: not wanted

  // Of a rectified branch.
  const void* affine = nullptr;  // scale, shift (2, C); null: it is not rectified
  void* affine_grad = nullptr;   // backward: (2, C), written; null: not wanted
  void* passed = nullptr;        // backward: g_k; may be g itself where the sum has one branch
  int64_t passed_pixel = 0;
};

struct Params {
  std::vector<Branch> branches;
  void* out;  // backward: g, read
  int64_t out_pixel, pixels, channels;
  double eps;
  bool add;       // forward: to what out holds
  bool training;  // mean and variance are the branches' own: gradients flow through them
  Dtype dtype;

  bool is_rectified() const {
    return std::any_of(branches.begin(), branches.end(), [](const Branch& b) { return b.affine != nullptr; });
  }
};

// Several sums over equally many pixels and channels go together: branches that they share are read once. No
// sum writes what another one reads or writes.
void forward_cpu(const std::vector<Params>& sums);
void backward_cpu(const std::vector<Params>& sums);

// CUDA: bytes of workspace.
int64_t forward_workspace(const std::vector<Params>& sums);
int64_t backward_workspace(const std::vector<Params>& sums);

}  // namespace fastnas::normalised_mixed_sum

#if defined(FASTNAS_WITH_CUDA) || defined(__CUDACC__)
extern "C" {
cudaError_t fastnas_normalised_mixed_sum_forward(
    const std::vector<fastnas::normalised_mixed_sum::Params>* sums, void* workspace, cudaStream_t stream);
cudaError_t fastnas_normalised_mixed_sum_backward(
    const std::vector<fastnas::normalised_mixed_sum::Params>* sums, void* workspace, cudaStream_t stream);
}
#endif
