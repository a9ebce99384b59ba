// The launchers of perturb_ and difference_: raw pointers, sizes, the stream last. They neither allocate nor
// synchronise.
#include "finite_difference/finite_difference_kernel.cuh"

namespace fastnas::finite_difference {
namespace {

using cuda::is_aligned;

template <class T>
unsigned blocks(int64_t n) {
  constexpr int64_t per_block = kThreads * kPack<T>;
  return static_cast<unsigned>((n + per_block - 1) / per_block);
}

template <class T>
void perturb(const PerturbParams& p, cudaStream_t stream) {
  if (is_aligned(p.w) && is_aligned(p.saved) && is_aligned(p.u))
    FASTNAS_LAUNCH((perturb_kernel<T, true>), blocks<T>(p.n), kThreads, stream, p);
  else
    FASTNAS_LAUNCH((perturb_kernel<T, false>), blocks<T>(p.n), kThreads, stream, p);
}

template <class T>
void difference(const DifferenceParams& p, cudaStream_t stream) {
  if (is_aligned(p.ahead) && is_aligned(p.behind))
    FASTNAS_LAUNCH((difference_kernel<T, true>), blocks<T>(p.n), kThreads, stream, p);
  else
    FASTNAS_LAUNCH((difference_kernel<T, false>), blocks<T>(p.n), kThreads, stream, p);
}

}  // namespace
}  // namespace fastnas::finite_difference

using fastnas::Dtype;

extern "C" cudaError_t fastnas_perturb(const fastnas::finite_difference::PerturbParams* params, void*,
                                       cudaStream_t stream) {
  using namespace fastnas::finite_difference;
  if (params->n == 0) return cudaSuccess;
  params->dtype == Dtype::float64 ? perturb<double>(*params, stream) : perturb<float>(*params, stream);
  return cudaGetLastError();
}

extern "C" cudaError_t fastnas_difference(const fastnas::finite_difference::DifferenceParams* params, void*,
                                          cudaStream_t stream) {
  using namespace fastnas::finite_difference;
  if (params->n == 0) return cudaSuccess;
  params->dtype == Dtype::float64 ? difference<double>(*params, stream) : difference<float>(*params, stream);
  return cudaGetLastError();
}
