// mixed_sum's launchers: raw pointers, sizes, the stream last. They neither allocate nor synchronise.
#include "mixed_sum/mixed_sum_kernel.cuh"

namespace fastnas::mixed_sum {
namespace {

using cuda::BFloat16;
using cuda::is_aligned;

// The branches from `first`, as many as one launch takes. `branches` or `grads` may be null.
BranchTable table_from(const void* const* branches, void* const* grads, int64_t branch_count, int64_t first) {
  BranchTable table{};
  table.first = static_cast<int>(first);
  table.count = static_cast<int>(std::min<int64_t>(branch_count - first, kTableSize));
  for (int k = 0; k < table.count; ++k) {
    table.branches[k] = branches ? branches[first + k] : nullptr;
    table.grads[k] = grads ? grads[first + k] : nullptr;
  }
  return table;
}

bool all_aligned(const BranchTable& table) {
  return std::all_of(table.branches, table.branches + table.count, is_aligned) &&
         std::all_of(table.grads, table.grads + table.count, is_aligned);
}

template <class T, class W>
cudaError_t forward(const ForwardParams& p, float* running, cudaStream_t stream) {
  if (p.n == 0) return cudaSuccess;
  constexpr int64_t per_block = kThreads * kPack<T>;
  const auto blocks = static_cast<unsigned>((p.n + per_block - 1) / per_block);
  const W* weights = static_cast<const W*>(p.weights);
  T* out = static_cast<T*>(p.out);
  for (int64_t first = 0; first < p.branch_count; first += kTableSize) {
    const BranchTable table = table_from(p.branches, nullptr, p.branch_count, first);
    const bool last = first + kTableSize >= p.branch_count;
    if (all_aligned(table) && is_aligned(out))
      FASTNAS_LAUNCH((forward_kernel<T, W, true>), blocks, kThreads, stream, table, weights, out, running,
                     last, p.n);
    else
      FASTNAS_LAUNCH((forward_kernel<T, W, false>), blocks, kThreads, stream, table, weights, out, running,
                     last, p.n);
  }
  return cudaGetLastError();
}

template <class T, class W>
cudaError_t backward(const BackwardParams& p, float* shares, cudaStream_t stream) {
  const int share_count = static_cast<int>(backward_blocks(p.n));
  const W* weights = static_cast<const W*>(p.weights);
  const T* grad = static_cast<const T*>(p.grad);
  for (int64_t first = 0; first < p.branch_count && p.n > 0; first += kTableSize) {
    const BranchTable table = table_from(p.branches, p.branch_grads, p.branch_count, first);
    const dim3 grid(share_count, (table.count + kGroup - 1) / kGroup);
    if (all_aligned(table) && is_aligned(grad))
      FASTNAS_LAUNCH((backward_kernel<T, W, true>), grid, kThreads, stream, table, grad, weights, shares,
                     p.n);
    else
      FASTNAS_LAUNCH((backward_kernel<T, W, false>), grid, kThreads, stream, table, grad, weights, shares,
                     p.n);
  }
  if (p.branches != nullptr)
    FASTNAS_LAUNCH((weights_grad_kernel<W>), static_cast<unsigned>(p.branch_count), kThreads, stream, shares,
                   share_count, static_cast<W*>(p.weights_grad));
  return cudaGetLastError();
}

}  // namespace
}  // namespace fastnas::mixed_sum

using fastnas::Dtype;

extern "C" cudaError_t fastnas_mixed_sum_forward(const fastnas::mixed_sum::ForwardParams* params,
                                                 void* workspace, cudaStream_t stream) {
  using namespace fastnas::mixed_sum;
  if (params->dtype == Dtype::float32)
    return forward<float, float>(*params, static_cast<float*>(workspace), stream);
  if (params->weights_dtype == Dtype::float32)
    return forward<BFloat16, float>(*params, static_cast<float*>(workspace), stream);
  return forward<BFloat16, BFloat16>(*params, static_cast<float*>(workspace), stream);
}

extern "C" cudaError_t fastnas_mixed_sum_backward(const fastnas::mixed_sum::BackwardParams* params,
                                                  void* workspace, cudaStream_t stream) {
  using namespace fastnas::mixed_sum;
  if (params->dtype == Dtype::float32)
    return backward<float, float>(*params, static_cast<float*>(workspace), stream);
  if (params->weights_dtype == Dtype::float32)
    return backward<BFloat16, float>(*params, static_cast<float*>(workspace), stream);
  return backward<BFloat16, BFloat16>(*params, static_cast<float*>(workspace), stream);
}
