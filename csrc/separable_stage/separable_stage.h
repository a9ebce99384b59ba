// The separable stage: a = ReLU(x) or ReLU((x - mean) rstd), a depthwise k x k convolution (or none: every
// stride-th pixel from `shift`), a 1x1 convolution to the raw output t, and mean and variance of t per
// channel. One call runs all branches of a group of sources; a source is read once for all of its branches.
//
// Backward takes the gradient of t in the form a (g + b (t - mean) + c), per channel, the normalised mixed
// sum's, and forms it on the fly; depthwise outputs are computed again. A branch may be a dense convolution
// instead.
#pragma once

#include <cstdint>
#include <vector>

#include "dtype.h"

#if defined(FASTNAS_WITH_CUDA) || defined(__CUDACC__)
#include <cuda_runtime_api.h>
#endif

namespace fastnas::separable_stage {

// An image state: (N, height, width, channels), rows dense, pixels `pixel` elements apart.
struct Source {
  const void* x;
  int64_t pixel, height, width, channels;
  const void* norm;  // mean (channels), variance (channels); null: x is taken as it is
  void* grad;        // backward: of x; normalised: of (x - mean) rstd. Pixels grad_pixel apart
  int64_t grad_pixel;
  bool add;  // backward: to what grad holds; a normalised source's is written
  void*
      coefficients;  // backward, normalised: (3, channels), the gradient of x as a (grad + b (x - mean) + c)
};

struct Branch {
  int64_t source;
  int64_t kernel;  // 0: no depthwise convolution
  bool dense;      // in place of depthwise and 1x1 one convolution, kernel x kernel, of stride and dilation 1
  int64_t dilation, stride, shift;
  int64_t height, width, channels;  // of the output
  const void* depthwise;            // (source channels, kernel, kernel)
  const void* pointwise;  // (channels, source channels); dense: (channels, source channels, kernel, kernel)
  void* raw;              // output t (read in backward), pixels raw_pixel apart
  int64_t raw_pixel;
  void* mean;  // (channels), written by forward (null: not wanted), read by backward
  void* variance;
  const void* grad;  // backward: g, pixels grad_pixel apart
  int64_t grad_pixel;
  const void* coefficients;  // backward: a, b, c, coefficient_row apart
  int64_t coefficient_row;
  void* depthwise_grad;  // backward; null: not wanted
  void* pointwise_grad;
};

struct Params {
  std::vector<Source> sources;
  std::vector<Branch> branches;
  int64_t images;
  double eps;     // of the sources' normalisation
  bool training;  // statistics are those of the batch: they are wanted, and gradients flow through them
  Dtype dtype;
};

void forward_cpu(const Params& params);
void backward_cpu(const Params& params);
// Of dual numbers; the others call them.
void forward_dual_cpu(const Params& params);
void backward_dual_cpu(const Params& params);

// CUDA: branches that read one source, whose table travels in a kernel's argument.
inline constexpr int kMaxSourceBranches = 64;

}  // namespace fastnas::separable_stage

#if defined(FASTNAS_WITH_CUDA) || defined(__CUDACC__)
extern "C" {
// Bytes of workspace.
int64_t fastnas_separable_stage_forward_workspace(const fastnas::separable_stage::Params* params);
int64_t fastnas_separable_stage_backward_workspace(const fastnas::separable_stage::Params* params);
cudaError_t fastnas_separable_stage_forward(const fastnas::separable_stage::Params* params, void* workspace,
                                            cudaStream_t stream);
cudaError_t fastnas_separable_stage_backward(const fastnas::separable_stage::Params* params, void* workspace,
                                             cudaStream_t stream);
}
#endif
