// A pass forward, and what it keeps for backward.
#include <algorithm>

#include "cell/pass.h"
#include "cell/pixels.h"

namespace fastnas::cell {

Tensor Pass::forward() {
  const int64_t channels = plan_.channels * static_cast<int64_t>(plan_.output.size());
  const Tensor out = new_images(model_, count_, channels, height_, width_);
  const Images whole = images_of(out, kOp, "out");
  run(whole, given_.training, false);
  for (int64_t state = 0; plan_.is_input(state); ++state)
    if (plan_.slot(state) != kNone) copy(states_[state], slice(whole, plan_.slot(state)), model_);
  return out;
}

// Where the nodes lie: in the output, or each in a batch of its own from make().
template <class Make>
void Pass::place_nodes(const Images& out, const Make& make) {
  for (int64_t state = static_cast<int64_t>(plan_.input_of.size()); state < plan_.states; ++state) {
    if (is_own(state)) own_.push_back(make());
    states_[state] = is_own(state) ? own_.back().images : slice(out, plan_.slot(state));
  }
}

// Makes everything but the output's own nodes, and those too if they are not `known`. Writes the statistics
// in training.
void Pass::run(const Images& out, bool training, bool known) {
  for (size_t i = 0; i < plan_.inputs.size(); ++i) preprocess(i, training);
  place_nodes(out, [&] { return node(); });
  const auto is_wanted = [&](int64_t state) { return !known || is_own(state); };
  for (const int64_t state : plan_.empty)
    if (is_wanted(state)) fill_zero(states_[state], model_);
  std::vector<bool> begun(plan_.states, false);
  for (size_t i = 0; i < plan_.groups.size(); ++i) {
    const Group& group = plan_.groups[i];
    read(i, training);
    if (std::any_of(group.targets.begin(), group.targets.end(), is_wanted)) pool(group, training);
    const std::vector<Images> firsts = firsts_of(i);
    std::vector<normalised_mixed_sum::Params> sums;
    for (size_t t = 0; t < group.targets.size(); ++t) {
      const int64_t target = group.targets[t];
      if (group.terms[t].empty() || !is_wanted(target)) continue;
      sums.push_back(
          sum(branches_of(i, firsts, group.terms[t]), group.terms[t], states_[target], begun[target]));
      begun[target] = true;
    }
    if (!sums.empty()) normalised_mixed_sum::run_forward(sums, model_);
  }
}

void Pass::preprocess(size_t i, bool training) {
  const Images x = input_images(i);
  const Input& input = plan_.inputs[i];
  if (input.rows.empty()) {
    states_[input.first_state] = x;
    return;
  }
  for (int64_t k = 0; k < input.states(); ++k) {
    projected_.push_back(batch(states_[0].height, states_[0].width));
    input_raws_[input.first_state + k] = projected_.back().images;
  }
  separable_stage::run_forward(stage({x}, {kNone}, input.rows, raws_of(input), training), model_);
  normalise(i);
}

// The states of an input from the raw outputs of its preprocessing.
void Pass::normalise(size_t i) {
  const Input& input = plan_.inputs[i];
  std::vector<normalised_mixed_sum::Params> sums;
  for (int64_t k = 0; k < input.states(); ++k) {
    const Images& raw = input_raws_[input.first_state + k];
    input_states_.push_back(batch(raw.height, raw.width));
    Images& state = states_[input.first_state + k] = input_states_.back().images;
    sums.push_back(sum({raw}, {{Call::first, 0, input.norms[k], kNone}}, state, false));
  }
  normalised_mixed_sum::run_forward(sums, model_);
}

// The raw outputs of an input's preprocessing.
std::vector<Images> Pass::raws_of(const Input& input) const {
  const auto first = input_raws_.begin() + input.first_state;
  return {first, first + input.states()};
}

// All convolutions of a group, up to their raw outputs.
void Pass::read(size_t index, bool training) {
  const Group& group = plan_.groups[index];
  std::vector<Batch> ends, seconds;
  reserve(ends, group.ends.size());
  reserve(seconds, group.middle.size());
  reserve(middles_, group.middle.size());
  cpu::advise_new_heap();
  ends_.push_back(std::move(ends));
  seconds_.push_back(std::move(seconds));
  if (!group.first.empty())
    separable_stage::run_forward(
        stage({states_[group.state]}, {kNone}, group.first, firsts_of(index), training), model_);
  if (!group.second.empty())
    separable_stage::run_forward(
        stage(images_of_all(middles_, group.middle.size()), group.middle_norms, group.second,
              images_of_all(seconds_[index], group.middle.size()), training),
        model_);
}

// ---------------------------------------------------------------------------- what backward needs

std::vector<Tensor> Pass::kept() const {
  std::vector<Tensor> tensors;
  const auto add = [&](const std::vector<Batch>& batches) {
    for (const Batch& batch : batches) tensors.push_back(batch.tensor);
  };
  add(projected_);
  add(own_);
  for (const auto& group : ends_) add(group);
  for (const auto& group : seconds_) add(group);
  return tensors;
}

void Pass::restore(const Tensor& out, const std::vector<Tensor>& kept) {
  const Images whole = images_like(out, model_, kOp, "out");
  check_size(whole, count_, plan_.channels * static_cast<int64_t>(plan_.output.size()), height_, width_, kOp,
             "out");
  if (kept.empty()) {
    run(whole, false, true);
    return;
  }
  size_t taken = 0;
  const auto take = [&](int64_t height, int64_t width) -> Batch {
    FASTNAS_CHECK(taken < kept.size(), kOp, "too few tensors were kept");
    const Tensor& tensor = kept[taken++];
    check_rows(tensor, model_, {count_, height, width, plan_.channels}, kOp, "kept");
    return batch(tensor, height, width);
  };
  for (const Input& input : plan_.inputs)
    for (int64_t k = 0; k < input.states() && !input.rows.empty(); ++k) {
      projected_.push_back(take(states_[0].height, states_[0].width));
      input_raws_[input.first_state + k] = projected_.back().images;
    }
  place_nodes(whole, [&] { return take(height_, width_); });
  const auto take_all = [&](std::vector<std::vector<Batch>>& groups, auto count) {
    for (const Group& group : plan_.groups) {
      groups.emplace_back();
      for (size_t i = 0; i < count(group); ++i) groups.back().push_back(take(height_, width_));
    }
  };
  take_all(ends_, [](const Group& group) { return group.ends.size(); });
  take_all(seconds_, [](const Group& group) { return group.middle.size(); });
  FASTNAS_CHECK(taken == kept.size(), kOp, "too many tensors were kept");
  for (size_t i = 0; i < plan_.inputs.size(); ++i)
    if (plan_.inputs[i].rows.empty())
      states_[plan_.inputs[i].first_state] = input_images(i);
    else
      normalise(i);
}

}  // namespace fastnas::cell
