#include "cases.h"
#include "optimiser/optimiser.h"
#include "vector_norm/vector_norm.h"

namespace fastnas::cases {
namespace {

using namespace optimiser;

template <class T>
void sgd(Run& run, int64_t n, int64_t shift, bool momentum, bool rate_given) {
  const Array<T> w(run, -2, 2, n, 1, 1, shift), grad(run, -2, 2, n, 1, 1, shift);
  const Array<T> buffer(run, -1, 1, momentum ? n : 0, 1, 1, shift);
  const Array<double> norm(1), rate(run, 0.1, 0.2, 1);
  SgdParams p{};
  p.w = w.data(), p.grad = grad.data(), p.buffer = momentum ? buffer.data() : nullptr, p.norm = norm.data();
  p.learning_rate = 0.1, p.rate = rate_given ? rate.data() : nullptr;
  p.momentum = momentum ? 0.9 : 0, p.weight_decay = 0.01, p.clip = 5;
  p.n = n, p.dtype = kDtype<T>;
  check(fastnas_sgd_step(&p, Workspace(vector_norm::workspace(n)).data(), nullptr));
  w.check(run, "w");
  buffer.check(run, "buffer");
  norm.check(run, "norm");
}

template <class T>
void adam(Run& run, int64_t n, int64_t shift) {
  const Array<T> alpha(run, -2, 2, n, 1, 1, shift), grad(run, -2, 2, n, 1, 1, shift);
  const Array<T> exp_avg(run, -1, 1, n, 1, 1, shift), exp_avg_sq(run, 0, 1, n, 1, 1, shift);
  const Array<float> step(run, 0, 0, 1);
  AdamParams p{};
  p.alpha = alpha.data(), p.grad = grad.data(), p.exp_avg = exp_avg.data(), p.exp_avg_sq = exp_avg_sq.data();
  p.step = step.data(), p.learning_rate = 0.01, p.beta1 = 0.5, p.beta2 = 0.999, p.eps = 1e-8;
  p.weight_decay = 0.01, p.n = n, p.dtype = kDtype<T>;
  for (int repeat = 0; repeat < 2; ++repeat)
    check(fastnas_adam_step(&p, Workspace(sizeof(AdamFactors)).data(), nullptr));
  for (const Array<T>* each : {&alpha, &exp_avg, &exp_avg_sq}) each->check(run, "a vector of Adam's");
  step.check(run, "step");
}

const Cases all("optimiser", [](Run& run) {
  for (const int64_t n : {int64_t{0}, int64_t{1}, run.draw_size(2000, 3000)})
    for (const int64_t shift : {0, 1}) {
      sgd<float>(run, n, shift, shift == 0, n > 1);
      sgd<float>(run, n, shift, shift == 1, n == 1);
      sgd<double>(run, n, shift, true, true);
      adam<float>(run, n, shift);
      adam<double>(run, n, shift);
    }
});

}  // namespace
}  // namespace fastnas::cases
