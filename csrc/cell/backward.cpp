// A pass backward: groups of edges from the last state to the first, then the preprocessing.
#include <algorithm>

#include "cell/pass.h"
#include "cell/pixels.h"

namespace fastnas::cell {

Gradients Pass::backward(const Tensor& grad, bool weights_wanted, const std::vector<bool>& inputs_wanted) {
  const Images whole = images_like(grad, model_, kOp, "grad");
  check_size(whole, count_, plan_.channels * static_cast<int64_t>(plan_.output.size()), height_, width_, kOp,
             "grad");
  FASTNAS_CHECK(inputs_wanted.size() == plan_.inputs.size(), kOp, "one flag an input is needed, got ",
                inputs_wanted.size());
  if (weights_wanted) check_weights_apart();
  weights_wanted_ = weights_wanted;
  inputs_wanted_ = inputs_wanted;
  coefficients_ = torch::stable::new_empty(given_.statistics, {plan_.norms, 3, plan_.channels});
  mixing_grad_ = torch::stable::new_empty(given_.mixing, {plan_.mixing});
  torch::stable::zero_(mixing_grad_);  // of primitives that add nothing
  weights_grad_ = torch::stable::new_empty(given_.weights, {weights_wanted ? plan_.weights : 0});
  if (!has_pixels()) torch::stable::zero_(weights_grad_);
  for (int64_t state = 0; state < plan_.states; ++state) {
    const int64_t slot = plan_.slot(state);
    begun_.push_back(slot != kNone);
    if (slot != kNone && !plan_.is_input(state)) {
      grads_.push_back(slice(whole, slot));
      continue;
    }
    own_grads_.push_back(batch(states_[state].height, states_[state].width));
    grads_.push_back(own_grads_.back().images);
    if (slot != kNone) copy(slice(whole, slot), grads_.back(), model_);
  }
  for (size_t i = plan_.groups.size(); i-- > 0;) read_backward(i);
  std::vector<Tensor> inputs;
  for (size_t i = 0; i < plan_.inputs.size(); ++i) inputs.push_back(preprocess_backward(i));
  if (weights_wanted) bias_gradients();
  return {mixing_grad_, weights_grad_, inputs};
}

// Each part's gradient is written where its weights lie.
void Pass::check_weights_apart() const {
  std::vector<separable_stage::Span> spans;
  const auto add = [&](const std::vector<Row>& rows, int64_t channels) {
    for (const Row& row : rows) separable_stage::add_weights(row, channels, spans);
  };
  for (size_t i = 0; i < plan_.inputs.size(); ++i) add(plan_.inputs[i].rows, input_images(i).channels);
  for (const Group& group : plan_.groups) add(group.first, plan_.channels), add(group.second, plan_.channels);
  for (const int64_t offset : plan_.affine)
    if (offset != kNone) spans.push_back({0, offset, 2 * plan_.channels});
  for (const Bias& bias : plan_.biases) spans.push_back({0, bias.offset, plan_.channels});
  FASTNAS_CHECK(separable_stage::are_apart(spans), kOp, "branches whose weights overlap have no gradients");
}

// Zero, if nothing has been added to a state's gradient.
void Pass::begin_grad(int64_t state) {
  if (!begun_[state]) fill_zero(grads_[state], model_);
  begun_[state] = true;
}

void Pass::read_backward(size_t index) {
  const Group& group = plan_.groups[index];
  for (const int64_t target : group.targets) begin_grad(target);
  pool(group, false);
  reserve(middles_, group.middle.size());
  reserve(middle_grads_, group.middle.size());
  const std::vector<Images> firsts = firsts_of(index);
  reserve(passed_, group.rectified);
  const std::vector<Images> passed = images_of_all(passed_, group.rectified);
  auto next_passed = passed.begin();
  std::vector<normalised_mixed_sum::Params> sums;
  for (size_t t = 0; t < group.targets.size(); ++t) {
    const std::vector<Term>& terms = group.terms[t];
    if (terms.empty()) continue;
    const auto rectified = std::count_if(terms.begin(), terms.end(),
                                         [&](const Term& term) { return plan_.is_rectified(term.norm); });
    sums.push_back(sum_backward(grads_[group.targets[t]], branches_of(index, firsts, terms), terms,
                                {next_passed, next_passed + rectified}));
    next_passed += rectified;
  }
  if (!sums.empty()) normalised_mixed_sum::run_backward(sums, model_);
  if (!passes(group.state)) return;
  const Images &x = states_[group.state], &x_grad = grads_[group.state];
  std::vector<Images> grads;
  for (const int64_t target : group.targets) grads.push_back(grads_[target]);
  const std::vector<Images> middle_grads = images_of_all(middle_grads_, group.middle.size());
  if (!group.second.empty()) {
    const std::vector<Images> middles = images_of_all(middles_, group.middle.size());
    separable_stage::run_forward(stage({x}, {kNone}, group.middles, middles, false), model_);
    stage_backward(grads, images_of_all(seconds_[index], group.middle.size()), middles, group.middle_norms,
                   group.second, middle_grads, false);
  }
  grads.insert(grads.end(), middle_grads.begin(), middle_grads.end());
  grads.insert(grads.end(), passed.begin(), passed.end());
  if (!group.first.empty()) {
    stage_backward(grads, firsts, {x}, {kNone}, group.first, {x_grad}, begun_[group.state]);
    begun_[group.state] = true;
  }
  begin_grad(group.state);
  pool_backward(group);
}

void Pass::pool_backward(const Group& group) {
  const Pooling& wanted = group.pooling;
  shared_pooling::Params params = pooling(group);
  params.x_grad = grads_[group.state].data, params.x_grad_pixel = grads_[group.state].pixel;
  const auto branch = [&](int64_t norm, int64_t index) -> shared_pooling::Branch {
    return {coefficient(norm), statistic(norm), weight(index)};
  };
  for (size_t t = 0; t < group.targets.size(); ++t) {
    const PoolingRow& row = wanted.rows[t];
    const Images& grad = grads_[group.targets[t]];
    params.edges.push_back({grad.data, grad.pixel, branch(row.average_norm, row.average_weight),
                            branch(row.maximum_norm, row.maximum_weight), weight(row.skip_weight)});
  }
  shared_pooling::run_backward(params, model_);
}

// The gradient of an input, out of those of its states. What their ReLUs let through takes the states' own
// place.
Tensor Pass::preprocess_backward(size_t i) {
  const Input& input = plan_.inputs[i];
  if (!passes(input.first_state)) return torch::stable::new_empty(model_, {0});
  if (input.rows.empty()) {
    begin_grad(input.first_state);
    return channels_last(own_grads_[input.first_state].tensor);
  }
  const std::vector<Images> raws = raws_of(input);
  std::vector<Images> grads;
  std::vector<normalised_mixed_sum::Params> sums;
  for (int64_t k = 0; k < input.states(); ++k) {
    begin_grad(input.first_state + k);
    grads.push_back(grads_[input.first_state + k]);
    const std::vector<Term> terms = {{Call::first, 0, input.norms[k], kNone}};
    sums.push_back(sum_backward(grads[k], {raws[k]}, terms, {grads[k]}));
  }
  normalised_mixed_sum::run_backward(sums, model_);
  const Images x = input_images(i);
  const Tensor grad = new_images(model_, x.count, x.channels, x.height, x.width);
  const Images x_grad = images_of(grad, kOp, "x_grad");
  stage_backward(grads, raws, {x}, {kNone}, input.rows, {x_grad}, false);
  return grad;
}

// Of convolutions' biases: zero where the batch's mean is taken away behind them, else a sum of gradients.
void Pass::bias_gradients() const {
  for (const Bias& bias : plan_.biases) {
    char* to = static_cast<char*>(weights_grad_.data_ptr()) + bias.offset * number_;
    if (given_.training)
      fill_zero(to, plan_.channels * number_, model_);
    else
      sum_pixels(grads_[bias.target], coefficient(bias.norm), to, model_);
  }
}

}  // namespace fastnas::cell
