// Whether the parts of a plan fit each other: what is read was made before, by one branch, and backward finds
// for each branch the gradient that it was summed into, and writes each number once.
#include <algorithm>
#include <set>

#include "cell/plan.h"
#include "stable.h"

namespace fastnas::cell {
namespace {

using separable_stage::Row;

constexpr const char* kOp = "cell: the plan ";

// Numbers that may be named once.
class Once {
 public:
  explicit Once(const char* what) : what_(what) {}
  void add(int64_t number) {
    if (number == kNone) return;
    FASTNAS_CHECK(seen_.insert(number).second, kOp, "names ", what_, " ", number, " twice");
  }

 private:
  const char* what_;
  std::set<int64_t> seen_;
};

// A sum that an output of a group's convolutions enters.
struct Entry {
  Term term;
  int64_t target, gradient;  // of the group, the index of the gradient that its branches must name
};

std::vector<Entry> entries_of(const Plan& plan, const Group& group) {
  std::vector<Entry> entries;
  int64_t passed = static_cast<int64_t>(group.targets.size() + group.middle.size());
  for (size_t t = 0; t < group.targets.size(); ++t)
    for (const Term& term : group.terms[t]) {
      const int64_t target = static_cast<int64_t>(t);
      entries.push_back({term, target, plan.is_rectified(term.norm) ? passed++ : target});
    }
  return entries;
}

// Rows of an output have its norm, and their gradient is `gradient`, or that of another edge to `node`.
void check_rows_of(const std::vector<Row>& rows, int64_t out, int64_t norm, int64_t gradient,
                   const Group& group, int64_t node) {
  const int64_t targets = static_cast<int64_t>(group.targets.size());
  for (const Row& row : rows) {
    if (row.out != out) continue;
    FASTNAS_CHECK(row.norm == norm, kOp, "has a branch with norm ", row.norm, " in place of ", norm);
    const bool same_node = node != kNone && row.grad < targets && group.targets[row.grad] == node;
    FASTNAS_CHECK(row.grad == gradient || (gradient < targets && same_node), kOp,
                  "has a branch with gradient ", row.grad, " in place of ", gradient);
  }
}

// Each output of `call` enters one sum.
void check_entered(const Plan& plan, const Group& group, Call call, const std::vector<int64_t>& outputs,
                   const std::vector<Row>& rows) {
  const std::vector<Entry> entries = entries_of(plan, group);
  for (const int64_t out : outputs) {
    const auto is_entry = [&](const Entry& e) { return e.term.call == call && e.term.index == out; };
    FASTNAS_CHECK(std::count_if(entries.begin(), entries.end(), is_entry) == 1, kOp, "has an output ", out,
                  " that does not enter one sum");
    const Entry& e = *std::find_if(entries.begin(), entries.end(), is_entry);
    check_rows_of(rows, out, e.term.norm, e.gradient, group, group.targets[e.target]);
  }
}

void check_convolutions(const Plan& plan, const Group& group) {
  const int64_t targets = static_cast<int64_t>(group.targets.size());
  const int64_t middles = static_cast<int64_t>(group.middle.size());
  Once once("the first half of a separable convolution");
  std::vector<int64_t> seconds;
  for (int64_t k = 0; k < middles; ++k) {
    once.add(group.middle[k]);
    seconds.push_back(k);
    check_rows_of(group.first, group.middle[k], group.middle_norms[k], targets + k, group, kNone);
    const auto reads = [&](const Row& row) { return row.source == k; };
    FASTNAS_CHECK(std::any_of(group.second.begin(), group.second.end(), reads), kOp, "does not read output ",
                  group.middle[k]);
  }
  check_entered(plan, group, Call::first, group.ends, group.first);
  check_entered(plan, group, Call::second, seconds, group.second);
}

// The terms of a target that are of `call`, at most one, as the pooling's row has them.
void check_term(const std::vector<Term>& terms, Call call, int64_t norm, int64_t weight) {
  Term only{call, 0, kNone, kNone};
  for (const Term& term : terms) {
    if (term.call != call) continue;
    FASTNAS_CHECK(only.weight == kNone && term.weight != kNone, kOp,
                  "has an edge that sums a state or a pooling twice, or without a weight");
    only = term;
  }
  FASTNAS_CHECK(only.norm == norm && only.weight == weight, kOp, "has an edge with norm ", only.norm,
                " and weight ", only.weight, " forward, ", norm, " and ", weight, " backward");
}

void check_pooling(const Group& group) {
  std::multiset<int64_t> averages, maxima;
  for (size_t t = 0; t < group.targets.size(); ++t) {
    const PoolingRow& row = group.pooling.rows[t];
    check_term(group.terms[t], Call::average, row.average_norm, row.average_weight);
    check_term(group.terms[t], Call::maximum, row.maximum_norm, row.maximum_weight);
    check_term(group.terms[t], Call::state, kNone, row.skip_weight);
    FASTNAS_CHECK(row.skip_weight == kNone || group.stride == 1, kOp, "has a skip-connection of stride ",
                  group.stride);
    if (row.average_norm != kNone) averages.insert(row.average_norm);
    if (row.maximum_norm != kNone) maxima.insert(row.maximum_norm);
  }
  const auto is_all = [](const std::vector<int64_t>& norms, const std::multiset<int64_t>& used) {
    return std::multiset<int64_t>(norms.begin(), norms.end()) == used;
  };
  FASTNAS_CHECK(is_all(group.pooling.average_norms, averages) && is_all(group.pooling.maximum_norms, maxima),
                kOp, "has a pooling whose norms are not those of its edges");
}

// A branch has a norm and a weight of its own.
void check_once(const Plan& plan) {
  Once outputs("output"), norms("norm"), weights("weight");
  for (const int64_t state : plan.output) outputs.add(state);
  for (const Input& input : plan.inputs)
    for (const int64_t norm : input.norms) norms.add(norm);
  for (const Group& group : plan.groups) {
    for (const int64_t norm : group.middle_norms) norms.add(norm);
    for (const auto& terms : group.terms)
      for (const Term& term : terms) norms.add(term.norm), weights.add(term.weight);
  }
}

// A bias lies in front of a norm whose branch enters its node.
void check_bias(const Plan& plan, const Bias& bias) {
  const auto enters = [&](const Group& group) {
    for (size_t t = 0; t < group.targets.size(); ++t)
      for (const Term& term : group.terms[t])
        if (group.targets[t] == bias.target && term.norm == bias.norm) return true;
    return false;
  };
  FASTNAS_CHECK(std::any_of(plan.groups.begin(), plan.groups.end(), enters), kOp, "has a bias with norm ",
                bias.norm, " that does not enter node ", bias.target);
}

}  // namespace

void check_consistent(const Plan& plan) {
  for (size_t i = 0; i < plan.groups.size(); ++i) {
    const Group& group = plan.groups[i];
    FASTNAS_CHECK(i == 0 || plan.groups[i - 1].state <= group.state, kOp, "reads state ", group.state,
                  " too late");
    check_convolutions(plan, group);
    check_pooling(group);
  }
  for (const Input& input : plan.inputs)
    for (const Row& row : input.rows)
      FASTNAS_CHECK(row.grad == row.out, kOp, "has an input whose state ", row.out, " has gradient ",
                    row.grad);
  check_once(plan);
  for (const Bias& bias : plan.biases) check_bias(plan, bias);
}

}  // namespace fastnas::cell
