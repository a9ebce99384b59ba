// virtual_step_'s binding.
#include "virtual_step/virtual_step.h"

#include "vectors.h"

namespace fastnas::virtual_step {
namespace {

void step(Tensor w, const Tensor& grad, std::optional<Tensor> buffer, double learning_rate, double momentum,
          double weight_decay, std::optional<Tensor> rate) {
  constexpr const char* op = "virtual_step_";
  const Named model{"w", w};
  check_model(op, model);
  check_like(op, {"grad", grad}, model);
  check_apart(op, model, {"grad", grad}, true);
  if (buffer) {
    check_like(op, {"buffer", *buffer}, model);
    check_apart(op, model, {"buffer", *buffer}, true);
  }
  const double* rate_pointer = number_at(op, "learning_rate", rate, model);
  check_apart(op, model, "learning_rate", rate);
  step_cpu({w.data_ptr(), grad.data_ptr(), buffer && momentum != 0 ? buffer->data_ptr() : nullptr,
            learning_rate, rate_pointer, momentum, weight_decay, w.numel(), kernel_dtype(w)});
}

}  // namespace
}  // namespace fastnas::virtual_step

STABLE_TORCH_LIBRARY_IMPL(fastnas, CPU, m) {
  m.impl("virtual_step_", TORCH_BOX(&fastnas::virtual_step::step));
}
