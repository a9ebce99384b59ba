#include "cases.h"
#include "mixed_sum/mixed_sum.h"

namespace fastnas::cases {
namespace {

using namespace mixed_sum;

struct Setting {
  int64_t branch_count, n;
  bool aligned;
  int64_t wanted_every;  // gradients of branches; 0: of none
  bool weights_wanted;
};

// W numbers weigh branches of T.
template <class T, class W>
void run_case(Run& run, const Setting& s) {
  const int64_t shift = s.aligned ? 0 : 1;
  const Array<W> weights(run, -1, 1, s.branch_count);
  const Array<T> grad(run, -2, 2, s.n, 1, 1, shift), out(s.n, 1, 1, shift);
  const Array<W> weights_grad(s.branch_count);
  std::vector<Array<T>> branches, grads;
  std::vector<const void*> pointers;
  std::vector<void*> grad_pointers;
  for (int64_t k = 0; k < s.branch_count; ++k) {
    branches.emplace_back(run, -2, 2, s.n, 1, 1, shift);
    const bool wanted = s.wanted_every > 0 && k % s.wanted_every == 0;
    grads.emplace_back(wanted ? s.n : 0, 1, 1, shift);
    pointers.push_back(branches.back().data());
    grad_pointers.push_back(wanted ? grads.back().data() : nullptr);
  }

  const ForwardParams forward{weights.data(), pointers.data(), out.data(), s.branch_count, s.n,
                              kDtype<T>,      kDtype<W>};
  check(fastnas_mixed_sum_forward(&forward, Workspace(forward_workspace(forward)).data(), nullptr));
  out.check(run, "out");

  const BackwardParams backward{grad.data(),
                                weights.data(),
                                s.weights_wanted ? pointers.data() : nullptr,
                                grad_pointers.data(),
                                s.weights_wanted ? weights_grad.data() : nullptr,
                                s.branch_count,
                                s.n,
                                kDtype<T>,
                                kDtype<W>};
  check(fastnas_mixed_sum_backward(&backward, Workspace(backward_workspace(backward)).data(), nullptr));
  if (s.weights_wanted) weights_grad.check(run, "the weights' gradient");
  for (const Array<T>& each : grads) each.check(run, "a branch's gradient");
}

const Cases all("mixed_sum", [](Run& run) {
  for (const Setting& s : {Setting{1, 1, true, 1, true}, Setting{9, 2051, true, 1, true},
                           Setting{3, run.draw_size(1100, 1500), false, 2, true}}) {
    run_case<float, float>(run, s);
    run_case<BFloat16, BFloat16>(run, s);
    run_case<BFloat16, float>(run, s);
  }
  run_case<float, float>(run, {3, 0, true, 1, true});
  run_case<float, float>(run, {4, 1500, true, 3, false});
  run_case<float, float>(run, {2, 7, true, 0, true});
  run_case<float, float>(run, {kTableSize + 1, 37, true, 50, true});  // more than one launch takes
  run_case<BFloat16, float>(run, {kTableSize + 1, 2500, false, 0, false});
});

}  // namespace
}  // namespace fastnas::cases
