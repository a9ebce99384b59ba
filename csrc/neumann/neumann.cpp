// neumann_step_'s binding.
#include "neumann/neumann.h"

#include "vectors.h"

namespace fastnas::neumann {
namespace {

Tensor neumann_step(Tensor v, Tensor series, const Tensor& ahead, const Tensor& behind, const Tensor& norm,
                    double radius, double gamma, std::optional<Tensor> rate) {
  constexpr const char* op = "neumann_step_";
  const Named model{"v", v}, sum{"series", series};
  check_model(op, model);
  check_like(op, sum, model);
  check_apart(op, model, sum, false);
  for (const Named& side : {Named{"ahead", ahead}, Named{"behind", behind}}) {
    check_like(op, side, model);
    check_apart(op, model, side, true);
    check_apart(op, sum, side, true);
  }
  check_scalar(op, {"norm", norm}, ScalarType::Double, "float64", model);
  const double* rate_pointer = number_at(op, "gamma", rate, model);
  for (const Named& written : {model, sum}) {
    check_apart(op, written, {"norm", norm}, false);
    check_apart(op, written, "gamma", rate);
  }
  Tensor new_norm = torch::stable::new_empty(v, std::vector<int64_t>{}, ScalarType::Double);
  step_cpu({v.data_ptr(), series.data_ptr(), ahead.data_ptr(), behind.data_ptr(),
            static_cast<const double*>(norm.data_ptr()), static_cast<double*>(new_norm.data_ptr()), radius,
            gamma, rate_pointer, v.numel(), kernel_dtype(v)});
  return new_norm;
}

}  // namespace
}  // namespace fastnas::neumann

STABLE_TORCH_LIBRARY_IMPL(fastnas, CPU, m) {
  m.impl("neumann_step_", TORCH_BOX(&fastnas::neumann::neumann_step));
}
