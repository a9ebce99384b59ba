// The schemas of all ops, in one place. Each op's binding registers its kernels beside its checks.
#include "stable.h"

STABLE_TORCH_LIBRARY(fastnas, m) {
  // out = sum_k weights[k] branches[k]
  m.def("mixed_sum(Tensor weights, Tensor[] branches) -> Tensor");
  // (d weights, [d branches[k] for k in wanted]); no branches given: no d weights, an empty tensor instead
  m.def(
      "mixed_sum_backward(Tensor grad, Tensor weights, Tensor[] branches, int[] wanted) -> (Tensor, "
      "Tensor[])");
  // |vector|, () of float64
  m.def("vector_norm(Tensor vector) -> Tensor");
  // w <- saved + sign eps u, eps = radius / |u|
  m.def("perturb_(Tensor(a!) w, Tensor saved, Tensor u, Tensor norm, float radius, int sign) -> ()");
  // ahead <- (ahead - behind) / (2 eps)
  m.def("difference_(Tensor(a!) ahead, Tensor behind, Tensor norm, float radius) -> ()");
  // |grad|, () of float64
  m.def(
      "sgd_step_(Tensor(a!) w, Tensor grad, Tensor(b!)? buffer, float learning_rate, float momentum, "
      "float weight_decay, float clip) -> Tensor");
  m.def(
      "adam_step_(Tensor(a!) alpha, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!) step, "
      "float learning_rate, float beta1, float beta2, float eps, float weight_decay) -> ()");
}
