// vector_norm's binding.
#include "vector_norm/vector_norm.h"

#include "cuda/runtime.h"
#include "vectors.h"

namespace fastnas::vector_norm {
namespace {

Tensor vector_norm(const Tensor& vector) {
  check_model("vector_norm", {"vector", vector});
  Tensor norm = torch::stable::new_empty(vector, std::vector<int64_t>{}, ScalarType::Double);
  const Params params{vector.data_ptr(), static_cast<double*>(norm.data_ptr()), vector.numel(),
                      kernel_dtype(vector)};
  FASTNAS_RUN("vector_norm", vector, workspace(params.n), fastnas_vector_norm, norm_cpu, params);
  return norm;
}

}  // namespace
}  // namespace fastnas::vector_norm

FASTNAS_REGISTER_BUILT(m) { m.impl("vector_norm", TORCH_BOX(&fastnas::vector_norm::vector_norm)); }
