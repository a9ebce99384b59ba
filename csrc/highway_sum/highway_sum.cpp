// highway_sum's binding: every check of its arguments, and the registration, for the CPU.
#include "highway_sum/highway_sum.h"

#include <tuple>

#include "memory.h"
#include "stable.h"
#include "work.h"

namespace fastnas::highway_sum {
namespace {

constexpr const char* kOp = "highway_sum: ";

void check_like(const Tensor& tensor, const Tensor& model, const char* name) {
  FASTNAS_CHECK(same_device(tensor, model) && tensor.scalar_type() == model.scalar_type(), kOp, name,
                " must be ", dtype_text(model), " on ", device_text(model), " as states are, got ",
                dtype_text(tensor), " on ", device_text(tensor));
  check_stored(tensor, kOp, name);
}

void check(const Tensor& mixing, const Tensor& states, const Tensor& raw) {
  FASTNAS_CHECK(states.dim() == 3 && states.size(0) > 0, kOp,
                "states must have shape (S, B, units) with S >= 1, got ", shape_text(states));
  FASTNAS_CHECK(states.scalar_type() == ScalarType::Float || states.scalar_type() == ScalarType::Double, kOp,
                "states must be float32 or float64, got ", dtype_text(states));
  check_stored(states, kOp, "states");
  check_like(mixing, states, "mixing");
  check_like(raw, states, "raw");
  FASTNAS_CHECK(mixing.dim() == 2 && mixing.size(0) == states.size(0) && mixing.size(1) == kActivations, kOp,
                "mixing must have shape (S, ", kActivations, "), S = ", states.size(0), ", got ",
                shape_text(mixing));
  FASTNAS_CHECK(raw.dim() == 3 && raw.size(0) == states.size(0) && raw.size(1) == states.size(1) &&
                    raw.size(2) % 2 == 0 && raw.size(2) / 2 == states.size(2),
                kOp, "raw must have shape (S, B, 2 units) for states ", shape_text(states), ", got ",
                shape_text(raw));
}

Params params_of(const Tensor& mixing, const Tensor& states, const Tensor& raw) {
  Params p{};
  p.mixing = mixing.data_ptr(), p.states = states.data_ptr(), p.raw = raw.data_ptr();
  p.sources = states.size(0), p.units = states.size(2);
  p.rows = p.units == 0 ? 0 : states.size(1);  // however many there are, nothing is in them
  p.dtype = kernel_dtype(states);
  return p;
}

// Three numbers of each source's unit are read; `written` of them are written. Two exponentials of about 16
// operations each, and the mixing.
Work work(const Params& p, int64_t written) {
  if (p.rows == 0) return {0, 0};
  const int64_t each = p.sources * p.rows * p.units;
  return {(written ? 80 : 60) * each, ((3 + written) * each + p.rows * p.units) * size_of(p.dtype)};
}

Tensor forward(const Tensor& given_mixing, const Tensor& given_states, const Tensor& given_raw) {
  check(given_mixing, given_states, given_raw);
  const Tensor mixing = torch::stable::contiguous(given_mixing);
  const Tensor states = torch::stable::contiguous(given_states);
  const Tensor raw = torch::stable::contiguous(given_raw);
  Tensor out = torch::stable::new_empty(states, {states.size(1), states.size(2)});
  Params p = params_of(mixing, states, raw);
  p.out = out.data_ptr();
  const Counted counted("highway_sum", work(p, 0));
  forward_cpu(p);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& given_grad, const Tensor& given_mixing,
                                            const Tensor& given_states, const Tensor& given_raw) {
  check(given_mixing, given_states, given_raw);
  check_like(given_grad, given_states, "grad");
  FASTNAS_CHECK(given_grad.dim() == 2 && given_grad.size(0) == given_states.size(1) &&
                    given_grad.size(1) == given_states.size(2),
                kOp, "grad must have shape (B, units) for states ", shape_text(given_states), ", got ",
                shape_text(given_grad));
  const Tensor grad = torch::stable::contiguous(given_grad);
  const Tensor mixing = torch::stable::contiguous(given_mixing);
  const Tensor states = torch::stable::contiguous(given_states);
  const Tensor raw = torch::stable::contiguous(given_raw);
  Tensor mixing_grad = torch::stable::empty_like(mixing);
  Tensor states_grad = torch::stable::empty_like(states);
  Tensor raw_grad = torch::stable::empty_like(raw);
  Params p = params_of(mixing, states, raw);
  p.grad = grad.data_ptr(), p.mixing_grad = mixing_grad.data_ptr();
  p.states_grad = states_grad.data_ptr(), p.raw_grad = raw_grad.data_ptr();
  const Counted counted("highway_sum_backward", work(p, 3));
  backward_cpu(p);
  return {mixing_grad, states_grad, raw_grad};
}

}  // namespace
}  // namespace fastnas::highway_sum

STABLE_TORCH_LIBRARY_IMPL(FASTNAS_LIBRARY, CPU, m) {
  m.impl("highway_sum", TORCH_BOX(&fastnas::highway_sum::forward));
  m.impl("highway_sum_backward", TORCH_BOX(&fastnas::highway_sum::backward));
}
