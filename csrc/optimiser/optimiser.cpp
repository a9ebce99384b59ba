// The bindings of sgd_step_ and adam_step_.
#include "optimiser/optimiser.h"

#include <optional>

#include "cuda/runtime.h"
#include "vector_norm/vector_norm.h"
#include "vectors.h"

namespace fastnas::optimiser {
namespace {

Tensor sgd_step(Tensor w, const Tensor& grad, std::optional<Tensor> buffer, double learning_rate,
                double momentum, double weight_decay, double clip, std::optional<Tensor> rate) {
  constexpr const char* op = "sgd_step_";
  const Named model{"w", w};
  check_model(op, model);
  check_like(op, {"grad", grad}, model);
  check_apart(op, model, {"grad", grad}, true);
  FASTNAS_CHECK(buffer || momentum == 0, op, ": momentum ", momentum, " needs a buffer, got None");
  if (buffer) {
    const Named written{"buffer", *buffer};
    check_like(op, written, model);
    check_apart(op, written, model, false);
    check_apart(op, written, {"grad", grad}, true);
  }
  const double* rate_pointer = number_at(op, "learning_rate", rate, model);
  check_apart(op, model, "learning_rate", rate);
  if (buffer) check_apart(op, {"buffer", *buffer}, "learning_rate", rate);
  Tensor norm = torch::stable::new_empty(w, std::vector<int64_t>{}, ScalarType::Double);
  const SgdParams params{w.data_ptr(),
                         grad.data_ptr(),
                         momentum == 0 ? nullptr : buffer->data_ptr(),
                         static_cast<double*>(norm.data_ptr()),
                         learning_rate,
                         rate_pointer,
                         momentum,
                         weight_decay,
                         clip,
                         w.numel(),
                         kernel_dtype(w)};
  FASTNAS_RUN(op, w, vector_norm::workspace(params.n), fastnas_sgd_step, sgd_step_cpu, params);
  return norm;
}

void adam_step(Tensor alpha, const Tensor& grad, Tensor exp_avg, Tensor exp_avg_sq, Tensor step,
               double learning_rate, double beta1, double beta2, double eps, double weight_decay) {
  constexpr const char* op = "adam_step_";
  const Named vectors[] = {{"alpha", alpha}, {"exp_avg", exp_avg}, {"exp_avg_sq", exp_avg_sq}};
  const Named& model = vectors[0];
  check_model(op, model);
  check_like(op, {"grad", grad}, model);
  for (int i = 0; i < 3; ++i) {
    check_like(op, vectors[i], model);
    check_apart(op, vectors[i], {"grad", grad}, true);
    for (int j = 0; j < i; ++j) check_apart(op, vectors[i], vectors[j], false);
  }
  check_scalar(op, {"step", step}, ScalarType::Float, "float32", model);
  check_apart(op, {"step", step}, {"grad", grad}, false);
  for (const Named& vector : vectors) check_apart(op, vector, {"step", step}, false);
  const AdamParams params{alpha.data_ptr(),
                          grad.data_ptr(),
                          exp_avg.data_ptr(),
                          exp_avg_sq.data_ptr(),
                          static_cast<float*>(step.data_ptr()),
                          learning_rate,
                          beta1,
                          beta2,
                          eps,
                          weight_decay,
                          alpha.numel(),
                          kernel_dtype(alpha)};
  FASTNAS_RUN(op, alpha, sizeof(AdamFactors), fastnas_adam_step, adam_step_cpu, params);
}

}  // namespace
}  // namespace fastnas::optimiser

FASTNAS_REGISTER_BUILT(m) {
  m.impl("sgd_step_", TORCH_BOX(&fastnas::optimiser::sgd_step));
  m.impl("adam_step_", TORCH_BOX(&fastnas::optimiser::adam_step));
}
