// The schemas of all ops, in one place. Each op's binding registers its kernels beside its checks.
#include "stable.h"

STABLE_TORCH_LIBRARY(FASTNAS_LIBRARY, m) {
  // out = sum_k weights[k] branches[k]
  m.def("mixed_sum(Tensor weights, Tensor[] branches) -> Tensor");
  // (d weights, [d branches[k] for k in wanted]); no branches given: no d weights, an empty tensor instead
  m.def(
      "mixed_sum_backward(Tensor grad, Tensor weights, Tensor[] branches, int[] wanted) -> (Tensor, "
      "Tensor[])");

  // ReLU, depthwise convolution, 1x1 convolution of groups of branches; writes the outputs' mean and variance
  // into `statistics` (norms, 2, channels), from which sources with a norm are normalised. A branch is a row
  // of `table`.
  m.def(
      "separable_stage(Tensor[] sources, int[] source_norms, Tensor weights, Tensor(a!) statistics, "
      "int[] table, float eps, bool training) -> Tensor[]");
  // Gradients of outputs are a (grad + b (raw - mean) + c), with a, b, c from `coefficients` (norms, 3,
  // channels). Adds to the source_grads of plain sources; of normalised ones writes that of the normalised
  // value, and their coefficients. Writes weights_grad (none or one).
  m.def(
      "separable_stage_backward(Tensor[] grads, Tensor[] raws, Tensor[] sources, int[] source_norms, "
      "Tensor weights, Tensor statistics, Tensor(a!) coefficients, int[] table, float eps, bool training, "
      "Tensor(b!)[] weights_grad, Tensor(c!)[] source_grads) -> ()");

  // out = sum_k w_k (branch_k - mean_k) rstd_k; norms and indices are rows of `statistics` and of `weights`,
  // or -1. With `add`, out += that. Branches that name a row of `affine` (rows, 2, C), and not -1, are
  // rectified: w_k ReLU(scale (branch_k - mean_k) rstd_k + shift).
  m.def(
      "normalised_mixed_sum(Tensor[] branches, int[] norms, Tensor weights, int[] indices, Tensor "
      "statistics, "
      "float eps, Tensor(a!) out, bool add=False, Tensor? affine=None, int[] rectified=[]) -> ()");
  // Of rectified branches also writes affine_grad and, each row's images behind the other, `passed`, which
  // stands for `grad` in their gradients.
  m.def(
      "normalised_mixed_sum_backward(Tensor grad, Tensor[] branches, int[] norms, Tensor weights, int[] "
      "indices, "
      "Tensor statistics, float eps, bool training, Tensor(a!) coefficients, Tensor(b!) weights_grad, "
      "Tensor? affine=None, int[] rectified=[], Tensor(c!)? passed=None, Tensor(d!)? affine_grad=None) -> "
      "()");

  // Average- and max-pooling 3x3, each if wanted, and their mean and variance into rows of `statistics`.
  m.def(
      "shared_pooling(Tensor x, int stride, bool average, bool maximum, int[] average_norms, "
      "int[] maximum_norms, Tensor(a!) statistics) -> Tensor[]");
  m.def(
      "shared_pooling_backward(Tensor x, int stride, Tensor[] average, Tensor[] maximum, Tensor[] grads, "
      "int[] table, Tensor statistics, Tensor coefficients, Tensor weights, Tensor(a!) x_grad) -> ()");

  // A whole cell: its output, and what backward needs beside it if that is to be kept. Writes `statistics` in
  // training.
  m.def(
      "cell(Tensor plan, Tensor[] inputs, Tensor mixing, Tensor weights, Tensor(a!) statistics, float eps, "
      "bool training, bool keep) -> (Tensor, Tensor[])");
  // Gradients of mixing, weights and inputs, empty where not wanted; `grad` is written over. Nothing kept:
  // it is computed again.
  m.def(
      "cell_backward(Tensor plan, Tensor(a!) grad, Tensor out, Tensor[] kept, Tensor[] inputs, "
      "Tensor mixing, Tensor weights, Tensor statistics, float eps, bool training, bool weights_wanted, "
      "bool[] inputs_wanted) -> (Tensor, Tensor, Tensor[])");

  // A node of a recurrent supernet, sum_j sum_k mixing_jk (s_j + c_j (f_k(h_j) - s_j)), with gates c and
  // values h the halves of `raw`.
  m.def("highway_sum(Tensor mixing, Tensor states, Tensor raw) -> Tensor");
  m.def(
      "highway_sum_backward(Tensor grad, Tensor mixing, Tensor states, Tensor raw) -> (Tensor, Tensor, "
      "Tensor)");

  // Below, `rate`, () of float64, stands for the learning rate or gamma where it is given: a number on the
  // device, which a captured graph reads anew.

  // |vector|, () of float64
  m.def("vector_norm(Tensor vector) -> Tensor");
  // w <- saved + sign eps u, eps = radius / |u|
  m.def("perturb_(Tensor(a!) w, Tensor saved, Tensor u, Tensor norm, float radius, int sign) -> ()");
  // ahead <- (ahead - behind) / (2 eps)
  m.def("difference_(Tensor(a!) ahead, Tensor behind, Tensor norm, float radius) -> ()");
  // v <- v - gamma (ahead - behind) / (2 eps);  series <- series + v;  returns |v|, () of float64
  m.def(
      "neumann_step_(Tensor(a!) v, Tensor(b!) series, Tensor ahead, Tensor behind, Tensor norm, "
      "float radius, float gamma, Tensor? rate=None) -> Tensor");
  // w <- w - learning_rate (momentum buffer + grad + weight_decay w)
  m.def(
      "virtual_step_(Tensor(a!) w, Tensor grad, Tensor? buffer, float learning_rate, float momentum, "
      "float weight_decay, Tensor? rate=None) -> ()");
  // |grad|, () of float64
  m.def(
      "sgd_step_(Tensor(a!) w, Tensor grad, Tensor(b!)? buffer, float learning_rate, float momentum, "
      "float weight_decay, float clip, Tensor? rate=None) -> Tensor");
  m.def(
      "adam_step_(Tensor(a!) alpha, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!) step, "
      "float learning_rate, float beta1, float beta2, float eps, float weight_decay) -> ()");
}
