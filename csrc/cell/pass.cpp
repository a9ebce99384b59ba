#include "cell/pass.h"

#include <algorithm>
#include <cstring>

namespace fastnas::cell {
namespace {

constexpr const char* kOp = "cell: ";

int64_t strided(int64_t side, int64_t stride) { return (side + stride - 1) / stride; }

std::vector<Images> images_of_all(const std::vector<Batch>& batches, size_t count) {
  std::vector<Images> images;
  for (size_t i = 0; i < count; ++i) images.push_back(batches[i].images);
  return images;
}

char* pixel_of(const Images& images, int64_t i, int64_t element) {
  return static_cast<char*>(images.data) + i * images.pixel * element;
}

int64_t pixels_of(const Images& images) { return images.count * images.height * images.width; }

void fill_zero(const Images& images, int64_t element) {
  if (images.pixel == images.channels) {
    std::memset(images.data, 0, pixels_of(images) * images.channels * element);
  } else {
    for (int64_t i = 0; i < pixels_of(images); ++i)
      std::memset(pixel_of(images, i, element), 0, images.channels * element);
  }
}

void copy(const Images& from, const Images& to, int64_t element) {
  for (int64_t i = 0; i < pixels_of(from); ++i)
    std::memcpy(pixel_of(to, i, element), pixel_of(from, i, element), from.channels * element);
}

// Sums over all pixels.
template <class T>
void sum_pixels(const Images& images, const T* scale, T* out) {
  std::vector<double> sums(images.channels, 0.0);
  for (int64_t i = 0; i < pixels_of(images); ++i) {
    const T* pixel = reinterpret_cast<const T*>(pixel_of(images, i, sizeof(T)));
    for (int64_t c = 0; c < images.channels; ++c) sums[c] += static_cast<double>(pixel[c]);
  }
  for (int64_t c = 0; c < images.channels; ++c)
    out[c] = static_cast<T>(static_cast<double>(scale[c]) * sums[c]);
}

}  // namespace

Pass::Pass(const Plan& plan, const Arguments& given)
    : plan_(plan),
      given_(given),
      dtype_(kernel_dtype(given.statistics)),
      element_(size_of(dtype_)),
      states_(plan.states),
      coefficients_(given.statistics),
      mixing_grad_(given.mixing),
      weights_grad_(given.weights) {
  FASTNAS_CHECK(given.inputs.size() == plan.inputs.size(), kOp, "the plan has ", plan.inputs.size(),
                " inputs, got ", given.inputs.size());
  for (size_t i = 0; i < plan.inputs.size(); ++i) {
    const Images x = input_images(i);
    const auto& rows = plan.inputs[i].rows;
    FASTNAS_CHECK(!rows.empty() || x.channels == plan.channels, kOp, "an input of ", x.channels,
                  " channels is a state of ", plan.channels);
    const int64_t stride = rows.empty() ? 1 : rows.front().stride;
    const int64_t height = strided(x.height, stride), width = strided(x.width, stride);
    if (i == 0) {
      count_ = x.count;
      height_ = strided(height, plan.stride), width_ = strided(width, plan.stride);
      states_[0] = {nullptr, x.count, plan.channels, height, width, 0};
    }
    FASTNAS_CHECK(x.count == count_ && height == states_[0].height && width == states_[0].width, kOp,
                  "inputs must have one size, got ", shape_text(given.inputs[i]), " beside ",
                  shape_text(given.inputs[0]));
  }
}

Images Pass::input_images(size_t i) const {
  return images_like(given_.inputs[i], given_.statistics, kOp, "inputs");
}

bool Pass::is_own(int64_t state) const { return !plan_.is_input(state) && plan_.slot(state) == kNone; }

Batch Pass::batch(int64_t height, int64_t width) const {
  const Tensor rows = torch::stable::new_empty(given_.statistics, {count_, height, width, plan_.channels});
  return {rows, {rows.data_ptr(), count_, plan_.channels, height, width, plan_.channels}};
}

Images Pass::slice(const Images& images, int64_t first_channel) const {
  Images part = images;
  part.data = static_cast<char*>(images.data) + first_channel * element_;
  part.channels = plan_.channels;
  return part;
}

void Pass::reserve(std::vector<Batch>& scratch, size_t count) const {
  while (scratch.size() < count) scratch.push_back(node());
}

char* Pass::statistic(int64_t norm) const {
  if (norm == kNone) return nullptr;
  return static_cast<char*>(given_.statistics.data_ptr()) + norm * 2 * plan_.channels * element_;
}

char* Pass::coefficient(int64_t norm) const {
  if (norm == kNone) return nullptr;
  return static_cast<char*>(coefficients_.data_ptr()) + norm * 3 * plan_.channels * element_;
}

const char* Pass::weight(int64_t index) const {
  if (index == kNone) return nullptr;
  return static_cast<const char*>(given_.mixing.data_ptr()) + index * element_;
}

// ---------------------------------------------------------------------------- calls of the ops

separable_stage::Params Pass::stage(const std::vector<Images>& sources, const std::vector<int64_t>& norms,
                                    const std::vector<Row>& rows, const std::vector<Images>& outs,
                                    bool training) const {
  separable_stage::Params params{{}, {}, count_, given_.eps, training, dtype_};
  for (size_t s = 0; s < sources.size(); ++s) {
    const Images& x = sources[s];
    params.sources.push_back(
        {x.data, x.pixel, x.height, x.width, x.channels, statistic(norms[s]), nullptr, 0, false, nullptr});
  }
  const char* weights = static_cast<const char*>(given_.weights.data_ptr());
  for (const Row& row : rows) {
    separable_stage::check_row(row, static_cast<int64_t>(sources.size()), sources.front().channels,
                               plan_.weights, plan_.norms);
    const Images &x = sources[row.source], &out = outs[row.out];
    auto branch = separable_stage::branch_of(row, x.height, x.width, weights, element_);
    FASTNAS_CHECK(branch.height == out.height && branch.width == out.width, kOp, "a branch of stride ",
                  row.stride, " does not have the size of its node");
    branch.raw = slice(out, row.out_channel).data;
    branch.raw_pixel = out.pixel;
    branch.mean = statistic(row.norm) + row.out_channel * element_;
    branch.variance = statistic(row.norm) + (plan_.channels + row.out_channel) * element_;
    params.branches.push_back(branch);
  }
  return params;
}

void Pass::stage_backward(const std::vector<Images>& grads, const std::vector<Images>& raws,
                          const std::vector<Images>& sources, const std::vector<int64_t>& norms,
                          const std::vector<Row>& rows, const std::vector<Images>& source_grads,
                          bool add) const {
  separable_stage::Params params = stage(sources, norms, rows, raws, given_.training);
  for (size_t s = 0; s < sources.size(); ++s) {
    separable_stage::Source& source = params.sources[s];
    source.grad = source_grads[s].data, source.grad_pixel = source_grads[s].pixel;
    source.add = add;
    source.coefficients = coefficient(norms[s]);
  }
  for (size_t k = 0; k < rows.size(); ++k) {
    const Row& row = rows[k];
    separable_stage::Branch& branch = params.branches[k];
    branch.grad = slice(grads[row.grad], row.out_channel).data;
    branch.grad_pixel = grads[row.grad].pixel;
    branch.coefficients = coefficient(row.norm) + row.out_channel * element_;
    branch.coefficient_row = plan_.channels;
    if (weights_wanted_)
      separable_stage::want_weights_grad(row, static_cast<char*>(weights_grad_.data_ptr()), element_, branch);
  }
  separable_stage::run_backward(params);
}

normalised_mixed_sum::Params Pass::sum(const std::vector<Images>& branches, const std::vector<Term>& terms,
                                       const Images& out, bool add) const {
  normalised_mixed_sum::Params params{{},         out.data, out.pixel,       pixels_of(out), plan_.channels,
                                      given_.eps, add,      given_.training, dtype_};
  for (size_t k = 0; k < terms.size(); ++k)
    params.branches.push_back({branches[k].data, branches[k].pixel, statistic(terms[k].norm),
                               weight(terms[k].weight), nullptr, nullptr});
  return params;
}

normalised_mixed_sum::Params Pass::sum_backward(const Images& grad, const std::vector<Images>& branches,
                                                const std::vector<Term>& terms) const {
  normalised_mixed_sum::Params params = sum(branches, terms, grad, false);
  char* weight_grads = static_cast<char*>(mixing_grad_.data_ptr());
  for (size_t k = 0; k < terms.size(); ++k) {
    params.branches[k].coefficients = coefficient(terms[k].norm);
    if (terms[k].weight != kNone) params.branches[k].weight_grad = weight_grads + terms[k].weight * element_;
  }
  return params;
}

shared_pooling::Params Pass::pooling(const Group& group) const {
  const Images& x = states_[group.state];
  const Pooling& wanted = group.pooling;
  shared_pooling::Params params{};
  params.x = x.data, params.pixel = x.pixel, params.images = count_, params.channels = plan_.channels;
  params.height = x.height, params.width = x.width, params.stride = group.stride;
  params.out_height = height_, params.out_width = width_;
  if (wanted.average) params.average = pooled_[0].images.data;
  if (wanted.maximum) params.maximum = pooled_[1].images.data;
  params.average_pixel = params.maximum_pixel = plan_.channels;
  params.dtype = dtype_;
  return params;
}

// ---------------------------------------------------------------------------- forward

Tensor Pass::forward() {
  const int64_t channels = plan_.channels * static_cast<int64_t>(plan_.output.size());
  const Tensor out = new_images(given_.statistics, count_, channels, height_, width_);
  const Images whole = images_of(out, kOp, "out");
  run(whole, given_.training, false);
  for (int64_t state = 0; plan_.is_input(state); ++state)
    if (plan_.slot(state) != kNone) copy(states_[state], slice(whole, plan_.slot(state)), element_);
  return out;
}

// Makes everything but the output's own nodes, and those too if they are not `known`. Writes the statistics
// in training.
void Pass::run(const Images& out, bool training, bool known) {
  for (size_t i = 0; i < plan_.inputs.size(); ++i) preprocess(i, training);
  for (int64_t state = static_cast<int64_t>(plan_.inputs.size()); state < plan_.states; ++state) {
    if (is_own(state)) own_.push_back(node());
    states_[state] = is_own(state) ? own_.back().images : slice(out, plan_.slot(state));
  }
  const auto is_wanted = [&](int64_t state) { return !known || is_own(state); };
  for (const int64_t state : plan_.empty)
    if (is_wanted(state)) fill_zero(states_[state], element_);
  std::vector<bool> begun(plan_.states, false);
  for (size_t i = 0; i < plan_.groups.size(); ++i) {
    const Group& group = plan_.groups[i];
    read(i, training);
    if (std::any_of(group.targets.begin(), group.targets.end(), is_wanted)) pool(group, training);
    std::vector<normalised_mixed_sum::Params> sums;
    for (size_t t = 0; t < group.targets.size(); ++t) {
      const int64_t target = group.targets[t];
      if (group.terms[t].empty() || !is_wanted(target)) continue;
      sums.push_back(sum(branches_of(i, group.terms[t]), group.terms[t], states_[target], begun[target]));
      begun[target] = true;
    }
    if (!sums.empty()) normalised_mixed_sum::run_forward(sums);
  }
}

void Pass::preprocess(size_t i, bool training) {
  const Images x = input_images(i);
  const Input& input = plan_.inputs[i];
  if (input.rows.empty()) {
    states_[i] = x;
    return;
  }
  const int64_t stride = input.rows.front().stride;
  projected_.push_back(batch(strided(x.height, stride), strided(x.width, stride)));
  const Images& raw = projected_.back().images;
  separable_stage::run_forward(stage({x}, {kNone}, input.rows, {raw}, training));
  normalise(i, raw);
}

// The state of an input from the raw output of its preprocessing.
void Pass::normalise(size_t i, const Images& raw) {
  input_states_.push_back(batch(raw.height, raw.width));
  states_[i] = input_states_.back().images;
  const Input& input = plan_.inputs[i];
  normalised_mixed_sum::run_forward({sum({raw}, {{Call::first, 0, input.norm, kNone}}, states_[i], false)});
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
        stage({states_[group.state]}, {kNone}, group.first, firsts_of(index), training));
  if (!group.second.empty())
    separable_stage::run_forward(stage(images_of_all(middles_, group.middle.size()), group.middle_norms,
                                       group.second, images_of_all(seconds_[index], group.middle.size()),
                                       training));
}

// The outputs of a group's first call, in order.
std::vector<Images> Pass::firsts_of(size_t index) const {
  const Group& group = plan_.groups[index];
  std::vector<Images> firsts(group.outputs);
  for (size_t i = 0; i < group.ends.size(); ++i) firsts[group.ends[i]] = ends_[index][i].images;
  for (size_t i = 0; i < group.middle.size(); ++i) firsts[group.middle[i]] = middles_[i].images;
  return firsts;
}

// Average and maximum, as far as wanted, of the state that a group reads.
void Pass::pool(const Group& group, bool statistics) {
  const Pooling& wanted = group.pooling;
  if (!wanted.average && !wanted.maximum) return;
  reserve(pooled_, 2);
  shared_pooling::Params params = pooling(group);
  if (statistics) {
    for (const int64_t norm : wanted.average_norms) params.average_norms.push_back(statistic(norm));
    for (const int64_t norm : wanted.maximum_norms) params.maximum_norms.push_back(statistic(norm));
  }
  shared_pooling::run_forward(params);
}

std::vector<Images> Pass::branches_of(size_t index, const std::vector<Term>& terms) const {
  const std::vector<Images> firsts = firsts_of(index);
  std::vector<Images> branches;
  for (const Term& term : terms) {
    switch (term.call) {
      case Call::state:
        branches.push_back(states_[plan_.groups[index].state]);
        break;
      case Call::first:
        branches.push_back(firsts[term.index]);
        break;
      case Call::second:
        branches.push_back(seconds_[index][term.index].images);
        break;
      case Call::average:
      case Call::maximum:
        branches.push_back(pooled_[term.call == Call::average ? 0 : 1].images);
        break;
    }
  }
  return branches;
}

// ---------------------------------------------------------------------------- between the passes

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
  const Images whole = images_like(out, given_.statistics, kOp, "out");
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
    check_dense(tensor, given_.statistics, {count_, height, width, plan_.channels}, kOp, "kept");
    return {tensor, {tensor.data_ptr(), count_, plan_.channels, height, width, plan_.channels}};
  };
  const int64_t height = states_[0].height, width = states_[0].width;
  for (const Input& input : plan_.inputs)
    if (!input.rows.empty()) projected_.push_back(take(height, width));
  for (int64_t state = 0; state < plan_.states; ++state)
    if (is_own(state)) own_.push_back(take(height_, width_));
  const auto take_all = [&](std::vector<std::vector<Batch>>& groups, auto count) {
    for (const Group& group : plan_.groups) {
      groups.emplace_back();
      for (size_t i = 0; i < count(group); ++i) groups.back().push_back(take(height_, width_));
    }
  };
  take_all(ends_, [](const Group& group) { return group.ends.size(); });
  take_all(seconds_, [](const Group& group) { return group.middle.size(); });
  FASTNAS_CHECK(taken == kept.size(), kOp, "too many tensors were kept");
  size_t projected = 0, own = 0;
  for (int64_t state = 0; state < plan_.states; ++state) {
    if (is_own(state))
      states_[state] = own_[own++].images;
    else if (!plan_.is_input(state))
      states_[state] = slice(whole, plan_.slot(state));
    else if (plan_.inputs[state].rows.empty())
      states_[state] = input_images(state);
    else
      normalise(state, projected_[projected++].images);
  }
}

// ---------------------------------------------------------------------------- backward

Gradients Pass::backward(const Tensor& grad, bool weights_wanted, const std::vector<bool>& inputs_wanted) {
  const Images whole = images_like(grad, given_.statistics, kOp, "grad");
  check_size(whole, count_, plan_.channels * static_cast<int64_t>(plan_.output.size()), height_, width_, kOp,
             "grad");
  FASTNAS_CHECK(inputs_wanted.size() == plan_.inputs.size(), kOp, "one flag an input is needed, got ",
                inputs_wanted.size());
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
    if (slot != kNone) copy(slice(whole, slot), grads_.back(), element_);
  }
  for (size_t i = plan_.groups.size(); i-- > 0;) read_backward(i);
  std::vector<Tensor> inputs;
  for (size_t i = 0; i < plan_.inputs.size(); ++i) inputs.push_back(preprocess_backward(i));
  if (weights_wanted) bias_gradients();
  return {mixing_grad_, weights_grad_, inputs};
}

// Zero, if nothing has been added to a state's gradient.
void Pass::begin_grad(int64_t state) {
  if (!begun_[state]) fill_zero(grads_[state], element_);
  begun_[state] = true;
}

void Pass::read_backward(size_t index) {
  const Group& group = plan_.groups[index];
  for (const int64_t target : group.targets) begin_grad(target);
  pool(group, false);
  if (!group.middles.empty()) {
    reserve(middles_, group.middle.size());
    reserve(middle_grads_, group.middle.size());
  }
  std::vector<normalised_mixed_sum::Params> sums;
  for (size_t t = 0; t < group.targets.size(); ++t)
    if (!group.terms[t].empty())
      sums.push_back(
          sum_backward(grads_[group.targets[t]], branches_of(index, group.terms[t]), group.terms[t]));
  if (!sums.empty()) normalised_mixed_sum::run_backward(sums);
  if (!passes(group.state)) return;
  const Images &x = states_[group.state], &x_grad = grads_[group.state];
  std::vector<Images> grads;
  for (const int64_t target : group.targets) grads.push_back(grads_[target]);
  const std::vector<Images> middle_grads = images_of_all(middle_grads_, group.middle.size());
  if (!group.second.empty()) {
    const std::vector<Images> middles = images_of_all(middles_, group.middle.size());
    separable_stage::run_forward(stage({x}, {kNone}, group.middles, middles, false));
    stage_backward(grads, images_of_all(seconds_[index], group.middle.size()), middles, group.middle_norms,
                   group.second, middle_grads, false);
  }
  grads.insert(grads.end(), middle_grads.begin(), middle_grads.end());
  if (!group.first.empty()) {
    stage_backward(grads, firsts_of(index), {x}, {kNone}, group.first, {x_grad}, begun_[group.state]);
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
    FASTNAS_CHECK(row.skip_weight == kNone || group.stride == 1, kOp, "a skip-connection has stride 1");
    params.edges.push_back({grad.data, grad.pixel, branch(row.average_norm, row.average_weight),
                            branch(row.maximum_norm, row.maximum_weight), weight(row.skip_weight)});
  }
  shared_pooling::run_backward(params);
}

// The gradient of an input, out of that of its state.
Tensor Pass::preprocess_backward(size_t i) {
  const Input& input = plan_.inputs[i];
  const size_t projected = next_projected_;
  if (!input.rows.empty()) ++next_projected_;
  if (!passes(static_cast<int64_t>(i))) return torch::stable::new_empty(given_.statistics, {0});
  begin_grad(static_cast<int64_t>(i));
  if (input.rows.empty()) return channels_last(own_grads_[i].tensor);
  const Images& raw = projected_[projected].images;
  normalised_mixed_sum::run_backward({sum_backward(grads_[i], {raw}, {{Call::first, 0, input.norm, kNone}})});
  const Images x = input_images(i);
  const Tensor grad = new_images(given_.statistics, x.count, x.channels, x.height, x.width);
  const Images x_grad = images_of(grad, kOp, "x_grad");
  stage_backward({grads_[i]}, {raw}, {x}, {kNone}, input.rows, {x_grad}, false);
  return grad;
}

// Of convolutions' biases: zero where the batch's mean is taken away behind them, else a sum of gradients.
void Pass::bias_gradients() const {
  for (const Bias& bias : plan_.biases) {
    char* to = static_cast<char*>(weights_grad_.data_ptr()) + bias.offset * element_;
    if (given_.training) {
      std::memset(to, 0, plan_.channels * element_);
      continue;
    }
    const Images& grad = grads_[bias.target];
    if (dtype_ == Dtype::float64)
      sum_pixels(grad, reinterpret_cast<const double*>(coefficient(bias.norm)),
                 reinterpret_cast<double*>(to));
    else
      sum_pixels(grad, reinterpret_cast<const float*>(coefficient(bias.norm)), reinterpret_cast<float*>(to));
  }
}

}  // namespace fastnas::cell
