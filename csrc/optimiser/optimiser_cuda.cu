// The launchers of sgd_step_ and adam_step_: raw pointers, sizes, the stream last. They neither allocate nor
// synchronise.
#include "optimiser/optimiser_kernel.cuh"
#include "vector_norm/vector_norm.h"

namespace fastnas::optimiser {
namespace {

using cuda::is_aligned;

unsigned blocks(int64_t n, int64_t per_thread) {
  const int64_t per_block = kThreads * per_thread;
  return static_cast<unsigned>((n + per_block - 1) / per_block);
}

template <class T>
void sgd_step(const SgdParams& p, cudaStream_t stream) {
  if (is_aligned(p.w) && is_aligned(p.grad) && is_aligned(p.buffer))
    FASTNAS_LAUNCH((sgd_kernel<T, true>), blocks(p.n, kPack<T>), kThreads, stream, p);
  else
    FASTNAS_LAUNCH((sgd_kernel<T, false>), blocks(p.n, kPack<T>), kThreads, stream, p);
}

}  // namespace
}  // namespace fastnas::optimiser

using fastnas::Dtype;

extern "C" cudaError_t fastnas_sgd_step(const fastnas::optimiser::SgdParams* params, void* workspace,
                                        cudaStream_t stream) {
  using namespace fastnas::optimiser;
  const fastnas::vector_norm::Params norm{params->grad, params->norm, params->n, params->dtype};
  const cudaError_t error = fastnas_vector_norm(&norm, workspace, stream);
  if (error != cudaSuccess || params->n == 0) return error;
  params->dtype == Dtype::float64 ? sgd_step<double>(*params, stream) : sgd_step<float>(*params, stream);
  return cudaGetLastError();
}

extern "C" cudaError_t fastnas_adam_step(const fastnas::optimiser::AdamParams* params, void* workspace,
                                         cudaStream_t stream) {
  using namespace fastnas::optimiser;
  AdamFactors* factors = static_cast<AdamFactors*>(workspace);
  FASTNAS_LAUNCH((adam_begin_kernel), 1, 1, stream, *params, factors);
  if (params->n > 0) {
    const unsigned block_count = blocks(params->n, 1);
    if (params->dtype == Dtype::float64)
      FASTNAS_LAUNCH((adam_kernel<double>), block_count, kThreads, stream, *params, factors);
    else
      FASTNAS_LAUNCH((adam_kernel<float>), block_count, kThreads, stream, *params, factors);
  }
  return cudaGetLastError();
}
