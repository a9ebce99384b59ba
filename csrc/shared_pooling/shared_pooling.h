// 3x3 average- and max-pooling of one state, shared by all edges that read it, with the mean and variance of
// both. The average counts no padding; a maximum that stands several times is the first, row by row.
//
// Backward takes the gradients of the edges' targets: each edge's pooled branches get a (g + b (p - mean) +
// c) (the normalised mixed sum's coefficients) or, not normalised, w g; its skip-connection gets w g.
#pragma once

#include <cstdint>
#include <vector>

#include "dtype.h"

#if defined(FASTNAS_WITH_CUDA) || defined(__CUDACC__)
#include <cuda_runtime_api.h>
#endif

namespace fastnas::shared_pooling {

// A pooled branch of an edge. Its numbers, like norms and weights, are of the images' dtype; of float32 where
// that is bfloat16. Not normalised without coefficients, not there without a weight either.
struct Branch {
  const void *coefficients, *mean, *weight;  // (3, channels), (channels), one number
};

// What one edge wants of the gradient of its target.
struct Edge {
  const void* grad;  // pixels grad_pixel apart
  int64_t grad_pixel;
  Branch average, maximum;
  const void* skip_weight;  // null: it has no skip-connection
};

struct Params {
  const void* x;
  int64_t pixel, images, height, width, channels, stride;
  int64_t out_height, out_width;
  void *average, *maximum;  // pooled; null: not wanted. Forward writes, backward reads
  int64_t average_pixel, maximum_pixel;
  std::vector<void*> average_norms, maximum_norms;  // forward: each gets the mean (C) and variance (C)
  std::vector<Edge> edges;                          // backward
  void* x_grad;                                     // backward: added to
  int64_t x_grad_pixel;
  Dtype dtype;
};

void forward_cpu(const Params& params);
void backward_cpu(const Params& params);

// CUDA: bytes of workspace.
int64_t forward_workspace(const Params& params);
int64_t backward_workspace(const Params& params);

}  // namespace fastnas::shared_pooling

#if defined(FASTNAS_WITH_CUDA) || defined(__CUDACC__)
extern "C" {
cudaError_t fastnas_shared_pooling_forward(const fastnas::shared_pooling::Params* params, void* workspace,
                                           cudaStream_t stream);
cudaError_t fastnas_shared_pooling_backward(const fastnas::shared_pooling::Params* params, void* workspace,
                                            cudaStream_t stream);
}
#endif
