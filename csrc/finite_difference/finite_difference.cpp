// The bindings of perturb_ and difference_.
#include "finite_difference/finite_difference.h"

#include "cuda/runtime.h"
#include "vectors.h"

namespace fastnas::finite_difference {
namespace {

const double* norm_of(const char* op, const Tensor& norm, const Named& model) {
  check_scalar(op, {"norm", norm}, ScalarType::Double, "float64", model);
  return static_cast<const double*>(norm.data_ptr());
}

void perturb(Tensor w, const Tensor& saved, const Tensor& u, const Tensor& norm, double radius,
             int64_t sign) {
  constexpr const char* op = "perturb_";
  const Named model{"w", w};
  check_model(op, model);
  for (const Named& vector : {Named{"saved", saved}, Named{"u", u}}) {
    check_like(op, vector, model);
    check_apart(op, model, vector, true);
  }
  const double* norm_pointer = norm_of(op, norm, model);
  check_apart(op, model, {"norm", norm}, false);
  const PerturbParams params{
      w.data_ptr(), saved.data_ptr(), u.data_ptr(), norm_pointer, static_cast<double>(sign) * radius,
      w.numel(),    kernel_dtype(w)};
  FASTNAS_RUN(op, w, 0, fastnas_perturb, perturb_cpu, params);
}

void difference(Tensor ahead, const Tensor& behind, const Tensor& norm, double radius) {
  constexpr const char* op = "difference_";
  const Named model{"ahead", ahead}, vector{"behind", behind};
  check_model(op, model);
  check_like(op, vector, model);
  check_apart(op, model, vector, true);
  const double* norm_pointer = norm_of(op, norm, model);
  check_apart(op, model, {"norm", norm}, false);
  const DifferenceParams params{ahead.data_ptr(), behind.data_ptr(), norm_pointer,
                                radius,           ahead.numel(),     kernel_dtype(ahead)};
  FASTNAS_RUN(op, ahead, 0, fastnas_difference, difference_cpu, params);
}

}  // namespace
}  // namespace fastnas::finite_difference

FASTNAS_REGISTER_BUILT(m) {
  m.impl("perturb_", TORCH_BOX(&fastnas::finite_difference::perturb));
  m.impl("difference_", TORCH_BOX(&fastnas::finite_difference::difference));
}
