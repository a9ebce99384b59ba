// What forward and backward of a pass share: the arguments in the ops' own structs.
#include "cell/pass.h"

#include "cell/pixels.h"

namespace fastnas::cell {

Pass::Pass(const Plan& plan, const Arguments& given)
    : plan_(plan),
      given_(given),
      model_(given.inputs.front()),
      dtype_(kernel_dtype(model_)),
      element_(size_of(dtype_)),
      number_(size_of(kernel_dtype(given.statistics))),
      input_raws_(plan.input_of.size()),
      states_(plan.states),
      coefficients_(given.statistics),
      mixing_grad_(given.mixing),
      weights_grad_(given.weights) {
  FASTNAS_CHECK(given.inputs.size() == plan.inputs.size(), kOp, "the plan has ", plan.inputs.size(),
                " inputs, got ", given.inputs.size());
  for (size_t i = 0; i < plan.inputs.size(); ++i) {
    const Images x = input_images(i);
    FASTNAS_CHECK(x.channels >= 1, kOp, "inputs must have channels, input ", i, " has none");
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
    const bool late = plan.inputs[i].has_node_size;
    FASTNAS_CHECK(x.count == count_ && height == (late ? height_ : states_[0].height) &&
                      width == (late ? width_ : states_[0].width),
                  kOp, "inputs must have one size, or that of the nodes, got ", shape_text(given.inputs[i]),
                  " beside ", shape_text(given.inputs[0]));
  }
  check_branches();
}

// All rows of all calls, before the first of them writes anything.
void Pass::check_branches() const {
  const auto check = [&](const std::vector<Row>& rows, size_t sources, int64_t channels, const Images& from,
                         int64_t height, int64_t width) {
    for (const Row& row : rows) {
      separable_stage::check_row(row, static_cast<int64_t>(sources), channels, plan_.weights, plan_.norms,
                                 kOp);
      FASTNAS_CHECK(strided(from.height, row.stride) == height && strided(from.width, row.stride) == width,
                    kOp, "a branch of stride ", row.stride, " does not have the size of its node");
    }
  };
  const Images first = states_[0], node{nullptr, count_, plan_.channels, height_, width_, 0};
  for (size_t i = 0; i < plan_.inputs.size(); ++i) {
    const Images x = input_images(i);
    check(plan_.inputs[i].rows, 1, x.channels, x, first.height, first.width);
  }
  for (const Group& group : plan_.groups) {
    const bool early =
        plan_.is_input(group.state) && !plan_.inputs[plan_.input_of[group.state]].has_node_size;
    check(group.first, 1, plan_.channels, early ? first : node, height_, width_);
    check(group.second, group.middle.size(), plan_.channels, node, height_, width_);
  }
}

Images Pass::input_images(size_t i) const { return images_like(given_.inputs[i], model_, kOp, "inputs"); }

bool Pass::is_own(int64_t state) const { return !plan_.is_input(state) && plan_.slot(state) == kNone; }

Batch Pass::batch(int64_t height, int64_t width) const {
  return batch(torch::stable::new_empty(model_, {count_, height, width, plan_.channels}), height, width);
}

Batch Pass::batch(const Tensor& rows, int64_t height, int64_t width) const {
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
  return static_cast<char*>(given_.statistics.data_ptr()) + norm * 2 * plan_.channels * number_;
}

char* Pass::coefficient(int64_t norm) const {
  if (norm == kNone) return nullptr;
  return static_cast<char*>(coefficients_.data_ptr()) + norm * 3 * plan_.channels * number_;
}

const char* Pass::weight(int64_t index) const {
  if (index == kNone) return nullptr;
  return static_cast<const char*>(given_.mixing.data_ptr()) + index * number_;
}

// Scale and shift behind a norm, where it has them.
const char* Pass::affine(int64_t norm) const {
  if (!plan_.is_rectified(norm)) return nullptr;
  return static_cast<const char*>(given_.weights.data_ptr()) + plan_.affine[norm] * number_;
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
    const Images &x = sources[row.source], &out = outs[row.out];
    auto branch = separable_stage::branch_of(row, x.height, x.width, weights, number_);
    branch.raw = slice(out, row.out_channel).data;
    branch.raw_pixel = out.pixel;
    branch.mean = statistic(row.norm) + row.out_channel * number_;
    branch.variance = statistic(row.norm) + (plan_.channels + row.out_channel) * number_;
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
    branch.coefficients = coefficient(row.norm) + row.out_channel * number_;
    branch.coefficient_row = plan_.channels;
    if (weights_wanted_)
      separable_stage::want_weights_grad(row, static_cast<char*>(weights_grad_.data_ptr()), number_, branch);
  }
  separable_stage::run_backward(params, model_);
}

normalised_mixed_sum::Params Pass::sum(const std::vector<Images>& branches, const std::vector<Term>& terms,
                                       const Images& out, bool add) const {
  normalised_mixed_sum::Params params{{},         out.data, out.pixel,       out.pixels(), plan_.channels,
                                      given_.eps, add,      given_.training, dtype_};
  for (size_t k = 0; k < terms.size(); ++k)
    params.branches.push_back({branches[k].data, branches[k].pixel, statistic(terms[k].norm),
                               weight(terms[k].weight), nullptr, nullptr, affine(terms[k].norm)});
  return params;
}

// `passed`, of each rectified term in order, gets the gradients that its ReLU lets through.
normalised_mixed_sum::Params Pass::sum_backward(const Images& grad, const std::vector<Images>& branches,
                                                const std::vector<Term>& terms,
                                                const std::vector<Images>& passed) const {
  normalised_mixed_sum::Params params = sum(branches, terms, grad, false);
  char* weight_grads = static_cast<char*>(mixing_grad_.data_ptr());
  size_t rectified = 0;
  for (size_t k = 0; k < terms.size(); ++k) {
    params.branches[k].coefficients = coefficient(terms[k].norm);
    if (terms[k].weight != kNone) params.branches[k].weight_grad = weight_grads + terms[k].weight * number_;
    if (!plan_.is_rectified(terms[k].norm)) continue;
    params.branches[k].passed = passed[rectified].data;
    params.branches[k].passed_pixel = passed[rectified++].pixel;
    if (weights_wanted_)
      params.branches[k].affine_grad =
          static_cast<char*>(weights_grad_.data_ptr()) + plan_.affine[terms[k].norm] * number_;
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
  shared_pooling::run_forward(params, model_);
}

// ---------------------------------------------------------------------------- outputs of a group's calls

// The outputs of a group's first call, in order.
std::vector<Images> Pass::firsts_of(size_t index) const {
  const Group& group = plan_.groups[index];
  std::vector<Images> firsts(group.outputs);
  for (size_t i = 0; i < group.ends.size(); ++i) firsts[group.ends[i]] = ends_[index][i].images;
  for (size_t i = 0; i < group.middle.size(); ++i) firsts[group.middle[i]] = middles_[i].images;
  return firsts;
}

std::vector<Images> Pass::branches_of(size_t index, const std::vector<Images>& firsts,
                                      const std::vector<Term>& terms) const {
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

}  // namespace fastnas::cell
