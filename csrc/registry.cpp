// The schemas of all ops, in one place. Each op's binding registers its kernels beside its checks.
#include "stable.h"

STABLE_TORCH_LIBRARY(fastnas, m) {
  // out = sum_k weights[k] branches[k]
  m.def("mixed_sum(Tensor weights, Tensor[] branches) -> Tensor");
  // (d weights, [d branches[k] for k in wanted]); no branches given: no d weights, an empty tensor instead
  m.def(
      "mixed_sum_backward(Tensor grad, Tensor weights, Tensor[] branches, int[] wanted) -> (Tensor, "
      "Tensor[])");
}
