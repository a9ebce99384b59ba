// mixed_sum's binding: every check of its arguments, the layout that the kernels run in, and the
// registration.
#include "mixed_sum/mixed_sum.h"

#include <tuple>

#include "cuda/runtime.h"
#include "layout.h"
#include "memory.h"
#include "stable.h"
#include "work.h"

namespace fastnas::mixed_sum {
namespace {

constexpr const char* kOp = "mixed_sum: ";

void check_weights(const Tensor& weights, const Tensor& model, const char* model_name) {
  FASTNAS_CHECK(same_device(weights, model), kOp,
                "weights and branches must be on one device, weights are on ", device_text(weights), " and ",
                model_name, " on ", device_text(model));
  cuda::check_built(kOp, model);
  const ScalarType dtype = model.scalar_type();
  const bool cuda = model.is_cuda();
  FASTNAS_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || (dtype == ScalarType::Double && !cuda),
      kOp, "branches must be float32", cuda ? " or bfloat16 on CUDA" : ", float64 or bfloat16 on the CPU",
      ", got ", dtype_text(model));
  const bool wide_weights = dtype == ScalarType::BFloat16 && weights.scalar_type() == ScalarType::Float;
  FASTNAS_CHECK(weights.scalar_type() == dtype || wide_weights, kOp, "weights must be ", dtype_text(model),
                dtype == ScalarType::BFloat16 ? " or float32" : "", " for ", dtype_text(model),
                " branches, got ", dtype_text(weights));
  check_stored(weights, kOp, "weights");
  check_stored(model, kOp, model_name);
}

void check_weights_shape(const Tensor& weights, int64_t branch_count) {
  FASTNAS_CHECK(weights.dim() == 1 && weights.size(0) == branch_count, kOp,
                "weights must have shape (K,), K = ", branch_count, ", got ", shape_text(weights));
}

void check_branches(const std::vector<Tensor>& branches) {
  const Tensor& first = branches.front();
  for (size_t k = 0; k < branches.size(); ++k) {
    const Tensor& branch = branches[k];
    FASTNAS_CHECK(same_shape(branch, first), kOp, "branches must share one shape, branch 0 has ",
                  shape_text(first), " and branch ", k, " has ", shape_text(branch));
    FASTNAS_CHECK(branch.scalar_type() == first.scalar_type(), kOp,
                  "branches must share one dtype, branch 0 is ", dtype_text(first), " and branch ", k, " is ",
                  dtype_text(branch));
    FASTNAS_CHECK(same_device(branch, first), kOp, "branches must share one device, branch 0 is on ",
                  device_text(first), " and branch ", k, " on ", device_text(branch));
    FASTNAS_CHECK(is_stored(branch), kOp, "branch ", k, " must have memory for its elements ",
                  shape_text(branch), "; its storage was freed or made smaller");
  }
}

std::vector<const void*> data_of(const std::vector<Tensor>& tensors) {
  std::vector<const void*> pointers;
  pointers.reserve(tensors.size());
  for (const Tensor& tensor : tensors) pointers.push_back(tensor.data_ptr());
  return pointers;
}

// A product and a sum for each number of `summed` branches, a product alone for each of `scaled`.
Work work(int64_t tensors, int64_t summed, int64_t numbers, Dtype dtype, int64_t scaled = 0) {
  return {(2 * summed + scaled) * numbers, tensors * numbers * size_of(dtype)};
}

Tensor forward(const Tensor& weights, const std::vector<Tensor>& given) {
  FASTNAS_CHECK(!given.empty(), kOp, "at least one branch is needed, got none");
  check_weights_shape(weights, static_cast<int64_t>(given.size()));
  check_branches(given);
  check_weights(weights, given.front(), "branch 0");

  const std::vector<Tensor> branches = in_one_layout(given);
  const Tensor contiguous_weights = torch::stable::contiguous(weights);
  const std::vector<const void*> pointers = data_of(branches);
  Tensor out = torch::stable::empty_like(branches.front());
  const ForwardParams params{contiguous_weights.data_ptr(),
                             pointers.data(),
                             out.data_ptr(),
                             weights.size(0),
                             out.numel(),
                             kernel_dtype(out),
                             kernel_dtype(weights)};
  const Counted counted("mixed_sum",
                        work(params.branch_count + 1, params.branch_count, params.n, params.dtype));
  FASTNAS_RUN("mixed_sum", out, forward_workspace(params), fastnas_mixed_sum_forward, forward_cpu, params);
  return out;
}

void check_wanted(const std::vector<int64_t>& wanted, int64_t branch_count) {
  int64_t previous = -1;
  for (const int64_t k : wanted) {
    FASTNAS_CHECK(previous < k && k < branch_count,
                  "mixed_sum_backward: wanted must name branches from 0 to ", branch_count - 1,
                  " in increasing order, got ", k, " after ", previous);
    previous = k;
  }
}

std::tuple<Tensor, std::vector<Tensor>> backward(const Tensor& given_grad, const Tensor& weights,
                                                 const std::vector<Tensor>& given,
                                                 const std::vector<int64_t>& wanted) {
  const bool want_weights = !given.empty();
  if (want_weights) {
    check_weights_shape(weights, static_cast<int64_t>(given.size()));
    check_branches(given);
    FASTNAS_CHECK(same_shape(given_grad, given.front()) && same_device(given_grad, given.front()) &&
                      given_grad.scalar_type() == given.front().scalar_type(),
                  "mixed_sum_backward: grad must have the branches' shape ", shape_text(given.front()),
                  ", dtype and device, got ", shape_text(given_grad), " of ", dtype_text(given_grad), " on ",
                  device_text(given_grad));
  } else {
    FASTNAS_CHECK(weights.dim() == 1, kOp, "weights must have shape (K,), got ", shape_text(weights));
  }
  check_weights(weights, given_grad, "grad");
  check_wanted(wanted, weights.size(0));

  const std::vector<Tensor> branches = want_weights ? in_one_layout(given) : given;
  const Tensor grad =
      want_weights ? in_layout_of(given_grad, branches.front()) : in_one_layout({given_grad}).front();
  const Tensor contiguous_weights = torch::stable::contiguous(weights);
  const std::vector<const void*> pointers = data_of(branches);
  std::vector<Tensor> branch_grads;
  std::vector<void*> grad_pointers(weights.size(0), nullptr);
  for (const int64_t k : wanted) {
    branch_grads.push_back(torch::stable::empty_like(grad));
    grad_pointers[k] = branch_grads.back().data_ptr();
  }
  Tensor weights_grad = torch::stable::new_empty(weights, {want_weights ? weights.size(0) : 0});
  const BackwardParams params{grad.data_ptr(),
                              contiguous_weights.data_ptr(),
                              want_weights ? pointers.data() : nullptr,
                              grad_pointers.data(),
                              want_weights ? weights_grad.data_ptr() : nullptr,
                              weights.size(0),
                              grad.numel(),
                              kernel_dtype(grad),
                              kernel_dtype(weights)};
  const int64_t read = want_weights ? params.branch_count : 0, written = static_cast<int64_t>(wanted.size());
  const Counted counted("mixed_sum_backward",
                        work(1 + read + written, read, params.n, params.dtype, written));
  FASTNAS_RUN("mixed_sum_backward", grad, backward_workspace(params), fastnas_mixed_sum_backward,
              backward_cpu, params);
  return {weights_grad, branch_grads};
}

}  // namespace
}  // namespace fastnas::mixed_sum

FASTNAS_REGISTER(m) {
  m.impl("mixed_sum", TORCH_BOX(&fastnas::mixed_sum::forward));
  m.impl("mixed_sum_backward", TORCH_BOX(&fastnas::mixed_sum::backward));
}
