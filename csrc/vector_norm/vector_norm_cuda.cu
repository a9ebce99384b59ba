// vector_norm's launcher: raw pointers, sizes, the stream last. It neither allocates nor synchronises.
#include "vector_norm/vector_norm_kernel.cuh"

namespace fastnas::vector_norm {
namespace {

template <class T>
void squares(const Params& p, double* shares, cudaStream_t stream) {
  const auto block_count = static_cast<unsigned>(blocks(p.n));
  const T* x = static_cast<const T*>(p.vector);
  if (cuda::is_aligned(x))
    FASTNAS_LAUNCH((squares_kernel<T, true>), block_count, kThreads, stream, x, shares, p.n);
  else
    FASTNAS_LAUNCH((squares_kernel<T, false>), block_count, kThreads, stream, x, shares, p.n);
}

}  // namespace
}  // namespace fastnas::vector_norm

extern "C" cudaError_t fastnas_vector_norm(const fastnas::vector_norm::Params* params, void* workspace,
                                           cudaStream_t stream) {
  using namespace fastnas::vector_norm;
  double* shares = static_cast<double*>(workspace);
  if (params->n > 0)
    params->dtype == fastnas::Dtype::float64 ? squares<double>(*params, shares, stream)
                                             : squares<float>(*params, shares, stream);
  FASTNAS_LAUNCH((root_kernel), 1, kThreads, stream, shares, static_cast<int>(blocks(params->n)),
                 params->norm);
  return cudaGetLastError();
}
