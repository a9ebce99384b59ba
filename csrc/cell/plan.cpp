#include "cell/plan.h"

#include <algorithm>

namespace fastnas::cell {
namespace {

using separable_stage::Row;

constexpr const char* kOp = "cell: the plan ";

// Numbers one after the other; lists begin with their length.
class Reader {
 public:
  Reader(const int64_t* numbers, int64_t count) : next_(numbers), left_(count) {}

  int64_t number() {
    FASTNAS_CHECK(left_ > 0, kOp, "ends too early");
    --left_;
    return *next_++;
  }
  // At least `least` and less than `bound`.
  int64_t index(int64_t bound, int64_t least = 0) {
    const int64_t value = number();
    FASTNAS_CHECK(value >= least && value < bound, kOp, "names ", value, " of ", bound);
    return value;
  }
  int64_t length() { return index(left_ + 1); }
  std::vector<int64_t> indices(int64_t bound, int64_t least = 0) {
    std::vector<int64_t> list(length());
    for (int64_t& value : list) value = index(bound, least);
    return list;
  }
  template <class Read>
  auto list(const Read& read) {
    std::vector<decltype(read())> items;
    for (int64_t n = length(); n > 0; --n) items.push_back(read());
    return items;
  }
  std::vector<Row> rows() {
    std::vector<int64_t> table(length());
    for (int64_t& value : table) value = number();
    return table.empty() ? std::vector<Row>() : separable_stage::read_table(table, kOp);
  }
  void end() const { FASTNAS_CHECK(left_ == 0, kOp, "has ", left_, " numbers too many"); }

 private:
  const int64_t* next_;
  int64_t left_;
};

Pooling read_pooling(Reader& in, const Plan& plan, size_t edges) {
  Pooling p{};
  p.average = in.index(2) == 1, p.maximum = in.index(2) == 1;
  p.average_norms = in.indices(plan.norms), p.maximum_norms = in.indices(plan.norms);
  const auto row = [&]() -> PoolingRow {
    const auto norm = [&] { return in.index(plan.norms, kNone); };
    const auto weight = [&] { return in.index(plan.mixing, kNone); };
    const int64_t average = norm(), average_weight = weight(), maximum = norm(), maximum_weight = weight();
    return {average, average_weight, maximum, maximum_weight, weight()};
  };
  for (size_t i = 0; i < edges; ++i) p.rows.push_back(row());
  for (const PoolingRow& r : p.rows)
    FASTNAS_CHECK((p.average || std::max(r.average_norm, r.average_weight) == kNone) &&
                      (p.maximum || std::max(r.maximum_norm, r.maximum_weight) == kNone),
                  kOp, "has an edge with a pooling that is not wanted");
  return p;
}

Term read_term(Reader& in, const Plan& plan, const Group& group) {
  const Call call = static_cast<Call>(in.index(static_cast<int64_t>(Call::maximum) + 1));
  int64_t bound = 1;
  if (call == Call::first) bound = group.outputs;
  if (call == Call::second) bound = static_cast<int64_t>(group.middle.size());
  const int64_t index = in.index(bound);
  FASTNAS_CHECK(call != Call::first || std::count(group.middle.begin(), group.middle.end(), index) == 0, kOp,
                "sums the first half of a separable convolution");
  const int64_t norm = in.index(plan.norms, kNone);
  FASTNAS_CHECK(call == Call::first || !plan.is_rectified(norm), kOp,
                "rectifies what is no convolution's end");
  return {call, index, norm, in.index(plan.mixing, kNone)};
}

// Rows of `first` that write the outputs `middle`, in its order.
std::vector<Row> rows_of_middles(const Group& group) {
  std::vector<Row> rows;
  for (const Row& row : group.first) {
    const auto found = std::find(group.middle.begin(), group.middle.end(), row.out);
    if (found == group.middle.end()) continue;
    rows.push_back(row);
    rows.back().out = found - group.middle.begin();
  }
  return rows;
}

// Every output is written by a row, and rows name outputs, gradients and norms that there are.
void check_rows(const std::vector<Row>& rows, int64_t outputs, int64_t grads, const Plan& plan) {
  std::vector<int64_t> written(outputs, 0);
  std::vector<separable_stage::Span> spans;
  for (const Row& r : rows) {
    FASTNAS_CHECK(r.out >= 0 && r.out < outputs && r.grad >= 0 && r.grad < grads && r.norm >= 0 &&
                      r.norm < plan.norms && r.channels >= 1 && r.channels <= plan.channels &&
                      r.out_channel >= 0 && r.out_channel <= plan.channels - r.channels &&
                      (r.stride == 1 || r.stride == 2),
                  kOp, "has a branch to output ", r.out, " of ", outputs, ", gradient ", r.grad, " of ",
                  grads, ", norm ", r.norm, " of ", plan.norms, ", stride ", r.stride);
    written[r.out] += r.channels;
    spans.push_back({r.out, r.out_channel, r.channels});
  }
  const bool complete = std::all_of(written.begin(), written.end(),
                                    [&](int64_t channels) { return channels == plan.channels; });
  FASTNAS_CHECK(complete && separable_stage::are_apart(spans), kOp,
                "has an output whose channels are not written once");
}

Input read_input(Reader& in, const Plan& plan) {
  Input input{static_cast<int64_t>(plan.input_of.size()), in.indices(plan.norms, kNone), in.rows(),
              in.index(2) == 1};
  FASTNAS_CHECK(!input.norms.empty() && (input.states() == 1 || !input.rows.empty()), kOp, "has an input of ",
                input.states(), " states");
  FASTNAS_CHECK(!input.has_node_size || input.rows.empty(), kOp,
                "makes states of an input of its nodes' size");
  if (!input.rows.empty()) check_rows(input.rows, input.states(), input.states(), plan);
  for (const Row& row : input.rows)
    FASTNAS_CHECK(input.norms[row.out] == row.norm, kOp, "has an input with two norms");
  return input;
}

Group read_group(Reader& in, const Plan& plan) {
  Group g{};
  g.state = in.index(plan.states), g.stride = in.number();
  g.outputs = in.length();
  g.targets = in.indices(plan.states);
  g.first = in.rows();
  g.middle = in.indices(g.outputs), g.middle_norms = in.indices(plan.norms);
  g.second = in.rows();
  for (size_t i = 0; i < g.targets.size(); ++i)
    g.terms.push_back(in.list([&] { return read_term(in, plan, g); }));
  g.pooling = read_pooling(in, plan, g.targets.size());
  for (const auto& terms : g.terms)
    for (const Term& term : terms)
      FASTNAS_CHECK((term.call != Call::average || g.pooling.average) &&
                        (term.call != Call::maximum || g.pooling.maximum),
                    kOp, "sums a pooling that is not wanted");
  const int64_t targets = static_cast<int64_t>(g.targets.size());
  const int64_t middles = static_cast<int64_t>(g.middle.size());
  FASTNAS_CHECK(g.middle_norms.size() == g.middle.size(), kOp, "needs one norm for each middle");
  for (const int64_t target : g.targets)
    FASTNAS_CHECK(target > g.state && !plan.is_input(target), kOp, "has an edge from ", g.state, " to ",
                  target);
  FASTNAS_CHECK(g.stride == plan.stride_from(g.state), kOp, "has an edge of stride ", g.stride);
  for (const auto& terms : g.terms)
    for (const Term& term : terms) g.rectified += plan.is_rectified(term.norm) ? 1 : 0;
  for (const int64_t norm : g.middle_norms)
    FASTNAS_CHECK(!plan.is_rectified(norm), kOp, "rectifies the first half of a separable convolution");
  check_rows(g.first, g.outputs, targets + middles + g.rectified, plan);
  check_rows(g.second, middles, targets, plan);
  g.middles = rows_of_middles(g);
  for (int64_t i = 0; i < g.outputs; ++i)
    if (std::count(g.middle.begin(), g.middle.end(), i) == 0) g.ends.push_back(i);
  return g;
}

// Every node is the sum of something, or empty.
void check_nodes(const Plan& plan) {
  std::vector<bool> made(plan.states, false);
  for (const int64_t state : plan.empty) made[state] = true;
  for (const Group& group : plan.groups)
    for (size_t t = 0; t < group.targets.size(); ++t)
      if (!group.terms[t].empty()) made[group.targets[t]] = true;
  for (int64_t state = 0; state < plan.states; ++state)
    FASTNAS_CHECK(plan.is_input(state) || made[state], kOp, "has nothing for node ", state);
}

}  // namespace

int64_t Plan::slot(int64_t state) const {
  const auto found = std::find(output.begin(), output.end(), state);
  return found == output.end() ? kNone : (found - output.begin()) * channels;
}

int64_t Plan::stride_from(int64_t state) const {
  return is_input(state) && !inputs[input_of[state]].has_node_size ? stride : 1;
}

Plan read_plan(const int64_t* numbers, int64_t count) {
  Reader in(numbers, count);
  Plan plan{};
  plan.channels = in.number(), plan.stride = in.number(), plan.states = in.number();
  plan.norms = in.number(), plan.weights = in.number(), plan.mixing = in.number();
  FASTNAS_CHECK(plan.channels >= 1 && plan.channels <= kMostChannels && plan.weights >= 0 &&
                    (plan.stride == 1 || plan.stride == 2) && plan.states >= 1 && plan.states <= count,
                kOp, "has ", plan.channels, " channels, stride ", plan.stride, ", ", plan.states,
                " states and ", plan.weights, " weights");
  plan.affine = in.indices(std::max<int64_t>(0, plan.weights - 2 * plan.channels + 1), kNone);
  FASTNAS_CHECK(static_cast<int64_t>(plan.affine.size()) == plan.norms, kOp, "has ", plan.norms,
                " norms and ", plan.affine.size(), " affine parts");
  for (int64_t n = in.length(); n > 0; --n) {
    plan.inputs.push_back(read_input(in, plan));
    plan.input_of.insert(plan.input_of.end(), plan.inputs.back().norms.size(),
                         static_cast<int64_t>(plan.inputs.size()) - 1);
  }
  FASTNAS_CHECK(plan.inputs.empty() || plan.stride == 1 || !plan.inputs.front().has_node_size, kOp,
                "has a first input of its nodes' size");
  FASTNAS_CHECK(!plan.inputs.empty() && static_cast<int64_t>(plan.input_of.size()) < plan.states, kOp,
                "needs an input and a node");
  plan.output = in.indices(plan.states), plan.empty = in.indices(plan.states);
  plan.biases = in.list([&]() -> Bias {
    const int64_t norm = in.index(plan.norms);
    const int64_t offset = in.index(plan.weights - plan.channels + 1);
    return {norm, offset, in.index(plan.states)};
  });
  plan.groups = in.list([&] { return read_group(in, plan); });
  in.end();
  check_nodes(plan);
  check_consistent(plan);
  return plan;
}

}  // namespace fastnas::cell
