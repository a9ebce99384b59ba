#include "cases.h"
#include "finite_difference/finite_difference.h"

namespace fastnas::cases {
namespace {

using namespace finite_difference;

template <class T>
void run_case(Run& run, int64_t n, int64_t shift) {
  const Array<T> w(n, 1, 1, shift), saved(run, -2, 2, n, 1, 1, shift), u(run, -2, 2, n, 1, 1, shift);
  const Array<double> norm(run, 1, 2, 1);
  PerturbParams perturb{};
  perturb.w = w.data(), perturb.saved = saved.data(), perturb.u = u.data(), perturb.norm = norm.data();
  perturb.signed_radius = -0.01, perturb.n = n, perturb.dtype = kDtype<T>;
  check(fastnas_perturb(&perturb, nullptr, nullptr));
  w.check(run, "w");
  perturb.saved = w.data();  // in place
  check(fastnas_perturb(&perturb, nullptr, nullptr));
  w.check(run, "w, in place");

  DifferenceParams difference{};
  difference.ahead = w.data(), difference.behind = saved.data(), difference.norm = norm.data();
  difference.radius = 0.01, difference.n = n, difference.dtype = kDtype<T>;
  check(fastnas_difference(&difference, nullptr, nullptr));
  w.check(run, "the difference");
}

const Cases all("finite_difference", [](Run& run) {
  for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{1027}, run.draw_size(3000, 4000)})
    for (const int64_t shift : {0, 1}) {
      run_case<float>(run, n, shift);
      run_case<double>(run, n, shift);
    }
});

}  // namespace
}  // namespace fastnas::cases
