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
                kOp, "plan must be a contiguous vector of int64 on the CPU, got ", shape_text(numbers), ", ",
                dtype_text(numbers), " on ", device_text(numbers));
  check_stored(numbers, kOp, "plan");
  FASTNAS_CHECK(!given.inputs.empty(), kOp, "at least one input is needed, got none");
  const Tensor& model = given.inputs.front();
  check_runs(model, kOp, "inputs");
  FASTNAS_CHECK(numbers_type(model) == given.statistics.scalar_type() && same_device(model, given.statistics),
                kOp, "inputs must be ", dtype_text(given.statistics), " on ", device_text(given.statistics),
                " as the statistics are, got ", dtype_text(model), " on ", device_text(model));
  Plan plan = read_plan(static_cast<const int64_t*>(numbers.data_ptr()), numbers.numel());
  check_dense(given.statistics, model, {plan.norms, 2, plan.channels}, kOp, "statistics");
  check_dense(given.mixing, model, {plan.mixing}, kOp, "mixing");
  check_dense(given.weights, model, {plan.weights}, kOp, "weights");
  return plan;
}

// What a pass reads beside the statistics, which forward writes.
Touched touched_by(const Arguments& given) {
  Touched touched(kOp);
  const Tensor& model = given.inputs.front();
  for (const Tensor& input : given.inputs)
    touched.reads(region_of("inputs", images_like(input, model, kOp, "inputs"), model));
  touched.reads(region_of("mixing", given.mixing));
  touched.reads(region_of("weights", given.weights));
  return touched;
}

// Backward writes over `grad`; what was kept is known to fit.
void check_apart(const Arguments& given, const Tensor& grad, const Tensor& out,
                 const std::vector<Tensor>& kept) {
  Touched touched = touched_by(given);
  const Tensor& model = given.inputs.front();
  touched.writes(region_of("grad", images_like(grad, model, kOp, "grad"), model));
  touched.reads(region_of("out", images_like(out, model, kOp, "out"), model));
  touched.reads(region_of("statistics", given.statistics));
  for (const Tensor& tensor : kept) touched.reads(region_of("kept", tensor));
  touched.check();
}

std::tuple<Tensor, std::vector<Tensor>> forward(const Tensor& numbers, const std::vector<Tensor>& inputs,
                                                const Tensor& mixing, const Tensor& weights,
                                                const Tensor& statistics, double eps, bool training,
                                                bool keep) {
  const Arguments given{inputs, mixing, weights, statistics, eps, training};
  const Plan plan = plan_of(numbers, given);
  Pass pass(plan, given);
  Touched touched = touched_by(given);
  touched.writes(region_of("statistics", statistics));
  touched.check();
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
  check_apart(given, grad, out, kept);
  const Gradients gradients = pass.backward(grad, weights_wanted, inputs_wanted);
  return {gradients.mixing, gradients.weights, gradients.inputs};
}

}  // namespace
}  // namespace fastnas::cell

FASTNAS_REGISTER(m) {
  m.impl("cell", TORCH_BOX(&fastnas::cell::forward));
  m.impl("cell_backward", TORCH_BOX(&fastnas::cell::backward));
}
