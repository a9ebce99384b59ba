// The fused cell's binding: checks of its arguments, and the registration.
#include <tuple>

#include "cell/pass.h"
#include "cell/plan.h"
#include "images.h"
#include "stable.h"

namespace fastnas::cell {
namespace {

Plan plan_of(const Tensor& numbers, const Arguments& given) {
  FASTNAS_CHECK(numbers.is_cpu() && numbers.dim() == 1 && numbers.is_contiguous() &&
                    numbers.scalar_type() == ScalarType::Long,
                kOp, "the plan must be a contiguous vector of int64 on the CPU, got ", shape_text(numbers),
                ", ", dtype_text(numbers), " on ", device_text(numbers));
  const Tensor& model = given.statistics;
  FASTNAS_CHECK(model.is_cpu(), kOp, "tensors must be on the CPU, got ", device_text(model));
  FASTNAS_CHECK(model.scalar_type() == ScalarType::Float || model.scalar_type() == ScalarType::Double, kOp,
                "tensors must be float32 or float64, got ", dtype_text(model));
  Plan plan = read_plan(static_cast<const int64_t*>(numbers.data_ptr()), numbers.numel());
  check_dense(model, model, {plan.norms, 2, plan.channels}, kOp, "statistics");
  check_dense(given.mixing, model, {plan.mixing}, kOp, "mixing");
  check_dense(given.weights, model, {plan.weights}, kOp, "weights");
  return plan;
}

std::tuple<Tensor, std::vector<Tensor>> forward(const Tensor& numbers, const std::vector<Tensor>& inputs,
                                                const Tensor& mixing, const Tensor& weights,
                                                const Tensor& statistics, double eps, bool training,
                                                bool keep) {
  const Arguments given{inputs, mixing, weights, statistics, eps, training};
  const Plan plan = plan_of(numbers, given);
  Pass pass(plan, given);
  const Tensor out = pass.forward();
  return {out, keep ? pass.kept() : std::vector<Tensor>()};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> backward(
    const Tensor& numbers, const Tensor& grad, const Tensor& out, const std::vector<Tensor>& kept,
    const std::vector<Tensor>& inputs, const Tensor& mixing, const Tensor& weights, const Tensor& statistics,
    double eps, bool training, bool weights_wanted, const std::vector<bool>& inputs_wanted) {
  const Arguments given{inputs, mixing, weights, statistics, eps, training};
  const Plan plan = plan_of(numbers, given);
  Pass pass(plan, given);
  pass.restore(out, kept);
  const Gradients gradients = pass.backward(grad, weights_wanted, inputs_wanted);
  return {gradients.mixing, gradients.weights, gradients.inputs};
}

}  // namespace
}  // namespace fastnas::cell

STABLE_TORCH_LIBRARY_IMPL(fastnas, CPU, m) {
  m.impl("cell", TORCH_BOX(&fastnas::cell::forward));
  m.impl("cell_backward", TORCH_BOX(&fastnas::cell::backward));
}
