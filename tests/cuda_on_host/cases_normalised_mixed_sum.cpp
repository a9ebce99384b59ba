#include "cases.h"
#include "normalised_mixed_sum/normalised_mixed_sum.h"

namespace fastnas::cases {
namespace {

using namespace normalised_mixed_sum;

struct Setting {
  int64_t sums, branches;         // each sum's, of which the first is the same in all sums
  int64_t pixels, channels, gap;  // elements between two pixels
  bool add, training;
  bool rectified = false;  // every second of the branches that are normalised
};

template <class T>
void run_case(Run& run, const Setting& s) {
  const auto images = [&] {
    return Array<T>(run, -2, 2, s.pixels, s.channels, s.channels + s.gap, s.gap % 2);
  };
  std::vector<Array<T>> xs, outs, grads;
  std::vector<Array<float>> norms, weights, coefficients, weight_grads, affine, affine_grads;
  std::vector<Array<T>> passed;
  std::vector<Params> forward, backward;
  for (int64_t i = 0; i < s.sums; ++i) {
    outs.push_back(s.add ? images() : Array<T>(s.pixels, s.channels, s.channels + s.gap, s.gap % 2));
    grads.push_back(images());
    Params p{};
    p.out = outs.back().data(), p.out_pixel = outs.back().pixel(), p.pixels = s.pixels;
    p.channels = s.channels, p.eps = 1e-5, p.add = s.add, p.training = s.training, p.dtype = kDtype<T>;
    for (int64_t k = 0; k < s.branches; ++k) {
      if (i == 0 || k > 0) xs.push_back(images());
      const Array<T>& x = i > 0 && k == 0 ? xs.front() : xs.back();
      const bool normalised = k % 4 != 3, weighed = k % 3 != 2;
      norms.emplace_back(run, 0.5, 1.5, 2, s.channels);
      weights.emplace_back(run, 0.5, 1.5, 1);
      coefficients.emplace_back(normalised ? 3 : 0, s.channels);
      weight_grads.emplace_back(weighed ? 1 : 0);
      p.branches.push_back({x.data(), x.pixel(), normalised ? norms.back().data() : nullptr,
                            weighed ? weights.back().data() : nullptr,
                            normalised ? coefficients.back().data() : nullptr,
                            weighed ? weight_grads.back().data() : nullptr});
      if (!s.rectified || !normalised || k % 2 == 1) continue;
      affine.emplace_back(run, -0.5, 1.5, 2, s.channels);
      affine_grads.emplace_back(2, s.channels);
      passed.emplace_back(s.pixels, s.channels, s.channels + s.gap, s.gap % 2);
      Branch& b = p.branches.back();
      b.affine = affine.back().data(), b.affine_grad = affine_grads.back().data();
      b.passed = passed.back().data(), b.passed_pixel = passed.back().pixel();
    }
    forward.push_back(p);
    p.out = grads.back().data(), p.out_pixel = grads.back().pixel();
    backward.push_back(p);
  }
  check(
      fastnas_normalised_mixed_sum_forward(&forward, Workspace(forward_workspace(forward)).data(), nullptr));
  for (const Array<T>& each : outs) each.check(run, "out");
  check(fastnas_normalised_mixed_sum_backward(&backward, Workspace(backward_workspace(backward)).data(),
                                              nullptr));
  for (const Array<float>& each : coefficients) each.check(run, "coefficients");
  for (const Array<float>& each : weight_grads) each.check(run, "a weight's gradient");
  for (const Array<float>& each : affine_grads) each.check(run, "an affine part's gradient");
  for (const Array<T>& each : passed) each.check(run, "what a ReLU lets through");
}

const Cases all("normalised_mixed_sum", [](Run& run) {
  for (const Setting& s :
       {Setting{2, 5, 63, 16, 0, false, true}, Setting{1, 3, 1, 1, 0, false, true},
        Setting{1, 4, 37, 5, 3, true, false}, Setting{3, 2, run.draw_size(300, 400), 24, 8, true, true}}) {
    run_case<float>(run, s);
    run_case<BFloat16>(run, s);
  }
  run_case<float>(run, {1, 101, 9, 8, 0, false, true});  // more than one launch takes
  run_case<float>(run, {18, 2, 7, 4, 0, false, true});   // sums, too
  run_case<float>(run, {1, 2, 5, 600, 0, false, true});  // channels, too
  run_case<BFloat16>(run, {1, 13, 3, 520, 1, true, true});
  run_case<float>(run, {1, 2, 5000, 4, 0, false, true});  // shares of the pixels
  for (const Setting& s :
       {Setting{2, 5, 63, 16, 0, false, true, true}, Setting{1, 1, 1, 1, 0, false, false, true},
        Setting{1, 80, 9, 5, 3, true, true, true}, Setting{1, 3, 700, 520, 0, false, true, true}}) {
    run_case<float>(run, s);
    run_case<BFloat16>(run, s);
  }
});

}  // namespace
}  // namespace fastnas::cases
