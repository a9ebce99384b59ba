// The normalised mixed sum's binding: every check of its arguments, and the registration.
#include <optional>

#include "cuda/runtime.h"
#include "images.h"
#include "normalised_mixed_sum/run.h"
#include "work.h"

namespace fastnas::normalised_mixed_sum {
namespace {

constexpr const char* kOp = "normalised_mixed_sum: ";

char* row_of(const Tensor& rows, int64_t row) {
  return static_cast<char*>(rows.data_ptr()) + row * rows.stride(0) * rows.element_size();
}

// What forward and backward share; `out` is the result or its gradient.
Params common(const Tensor& out, const std::vector<Tensor>& branches, const std::vector<int64_t>& norms,
              const Tensor& weights, const std::vector<int64_t>& indices, const Tensor& statistics,
              double eps, bool training) {
  check_runs(out, kOp, "branches");
  FASTNAS_CHECK(!branches.empty() && norms.size() == branches.size() && indices.size() == branches.size(),
                kOp, "one norm and one weight a branch are needed, and at least one branch");
  FASTNAS_CHECK(statistics.dim() == 3 && statistics.size(1) == 2, kOp,
                "statistics must have shape (norms, 2, channels), got ", shape_text(statistics));
  check_dense(statistics, out, {statistics.size(0), 2, statistics.size(2)}, kOp, "statistics");
  check_dense(weights, out, {weights.numel()}, kOp, "weights");
  const Images to = images_of(out, kOp, "out");
  const int64_t channels = statistics.size(2), element = statistics.element_size();
  const char* norm_data = static_cast<const char*>(statistics.data_ptr());
  const char* weight_data = static_cast<const char*>(weights.data_ptr());
  Params params{{},    to.data,  to.pixel,         to.count * to.height * to.width, to.channels, eps,
                false, training, kernel_dtype(out)};
  for (size_t k = 0; k < branches.size(); ++k) {
    const Images x = images_like(branches[k], out, kOp, "branches");
    check_size(x, to.count, to.channels, to.height, to.width, kOp, "branches");
    FASTNAS_CHECK(
        norms[k] >= -1 && norms[k] < statistics.size(0) && (norms[k] < 0 || channels == to.channels), kOp,
        "norm ", norms[k], " of ", to.channels, " channels among ", statistics.size(0), " of ", channels);
    FASTNAS_CHECK(indices[k] >= -1 && indices[k] < weights.numel(), kOp, "weight ", indices[k], " of ",
                  weights.numel());
    params.branches.push_back(
        {x.data, x.pixel, norms[k] < 0 ? nullptr : norm_data + norms[k] * 2 * channels * element,
         indices[k] < 0 ? nullptr : weight_data + indices[k] * element, nullptr, nullptr});
  }
  return params;
}

// Enters what rectified branches have: of branch k row rectified[k] of `affine` (rows, 2, C), if that is not
// -1.
void rectify(Params& params, const Tensor& model, const std::optional<Tensor>& affine,
             const std::vector<int64_t>& rectified) {
  if (!affine) return;
  const int64_t rows = affine->dim() == 3 ? affine->size(0) : 0;
  check_dense(*affine, model, {rows, 2, params.channels}, kOp, "affine");
  FASTNAS_CHECK(rectified.size() == params.branches.size(), kOp,
                "one row of affine a branch is needed, or -1");
  for (size_t k = 0; k < rectified.size(); ++k) {
    Branch& b = params.branches[k];
    FASTNAS_CHECK(rectified[k] >= -1 && rectified[k] < rows && (rectified[k] < 0 || b.norm != nullptr), kOp,
                  "row ", rectified[k], " of ", rows, " of affine, for a branch that is normalised");
    if (rectified[k] >= 0) b.affine = row_of(*affine, rectified[k]);
  }
}

void forward(const std::vector<Tensor>& branches, const std::vector<int64_t>& norms, const Tensor& weights,
             const std::vector<int64_t>& indices, const Tensor& statistics, double eps, const Tensor& out,
             bool add, std::optional<Tensor> affine, const std::vector<int64_t>& rectified) {
  Params params = common(out, branches, norms, weights, indices, statistics, eps, false);
  params.add = add;
  rectify(params, out, affine, rectified);
  run_forward({params}, out);
}

// Backward writes one gradient a row, so no two branches may share one.
void check_once(const std::vector<int64_t>& rows, int64_t count, const char* name) {
  std::vector<bool> used(count, false);
  for (const int64_t row : rows) {
    if (row < 0) continue;
    FASTNAS_CHECK(!used[row], kOp, "backward needs a ", name, " of its own for each branch, ", name, " ", row,
                  " has two");
    used[row] = true;
  }
}

// Where backward writes what it finds for rectified branches: row i of both tensors, i the branch's row of
// `affine`.
void want(Params& params, const Tensor& grad, const std::vector<int64_t>& rectified, const Tensor& affine,
          const std::optional<Tensor>& passed, const std::optional<Tensor>& affine_grad) {
  const int64_t rows = affine.size(0);
  check_once(rectified, rows, "row of affine");
  FASTNAS_CHECK(passed && affine_grad, kOp, "backward of rectified branches needs passed and affine_grad");
  check_dense(*affine_grad, grad, {rows, 2, params.channels}, kOp, "affine_grad");
  const Images g = images_of(grad, kOp, "grad"), all = images_like(*passed, grad, kOp, "passed");
  check_size(all, rows * g.count, g.channels, g.height, g.width, kOp, "passed");
  const int64_t images = g.count * g.height * g.width * all.pixel * size_of(params.dtype);
  for (size_t k = 0; k < rectified.size(); ++k) {
    if (rectified[k] < 0) continue;
    Branch& b = params.branches[k];
    b.affine_grad = row_of(*affine_grad, rectified[k]);
    b.passed = static_cast<char*>(all.data) + rectified[k] * images;
    b.passed_pixel = all.pixel;
  }
}

void backward(const Tensor& grad, const std::vector<Tensor>& branches, const std::vector<int64_t>& norms,
              const Tensor& weights, const std::vector<int64_t>& indices, const Tensor& statistics,
              double eps, bool training, const Tensor& coefficients, const Tensor& weights_grad,
              std::optional<Tensor> affine, const std::vector<int64_t>& rectified,
              std::optional<Tensor> passed, std::optional<Tensor> affine_grad) {
  Params params = common(grad, branches, norms, weights, indices, statistics, eps, training);
  check_once(norms, statistics.size(0), "norm");
  check_once(indices, weights.numel(), "weight");
  check_dense(coefficients, grad, {statistics.size(0), 3, statistics.size(2)}, kOp, "coefficients");
  check_dense(weights_grad, grad, {weights.numel()}, kOp, "weights_grad");
  const int64_t element = statistics.element_size();
  char* coefficient_data = static_cast<char*>(coefficients.data_ptr());
  char* weights_grad_data = static_cast<char*>(weights_grad.data_ptr());
  for (size_t k = 0; k < branches.size(); ++k) {
    Branch& b = params.branches[k];
    if (norms[k] >= 0) b.coefficients = coefficient_data + norms[k] * 3 * statistics.size(2) * element;
    if (indices[k] >= 0) b.weight_grad = weights_grad_data + indices[k] * element;
  }
  rectify(params, grad, affine, rectified);
  if (affine) want(params, grad, rectified, *affine, passed, affine_grad);
  run_backward({params}, grad);
}

// A product and a sum for each branch and number.
Work work(const std::vector<Params>& sums) {
  Work all{};
  for (const Params& p : sums) {
    const int64_t branches = static_cast<int64_t>(p.branches.size()), elements = p.pixels * p.channels;
    all.flops += 2 * branches * elements * multiply_adds_of(p.dtype);
    int64_t written = 0;  // beside the sum
    for (const Branch& b : p.branches) written += b.passed != nullptr ? 1 : 0;
    all.bytes += (branches + 1 + (p.add ? 1 : 0) + written) * elements * size_of(p.dtype);
  }
  return all;
}

}  // namespace

void run_forward(const std::vector<Params>& sums, const Tensor& model) {
  const Counted counted("normalised_mixed_sum", work(sums));
  FASTNAS_RUN("normalised_mixed_sum", model, forward_workspace(sums), fastnas_normalised_mixed_sum_forward,
              forward_cpu, sums);
}

void run_backward(const std::vector<Params>& sums, const Tensor& model) {
  const Counted counted("normalised_mixed_sum_backward", work(sums));
  FASTNAS_RUN("normalised_mixed_sum_backward", model, backward_workspace(sums),
              fastnas_normalised_mixed_sum_backward, backward_cpu, sums);
}

}  // namespace fastnas::normalised_mixed_sum

FASTNAS_REGISTER(m) {
  m.impl("normalised_mixed_sum", TORCH_BOX(&fastnas::normalised_mixed_sum::forward));
  m.impl("normalised_mixed_sum_backward", TORCH_BOX(&fastnas::normalised_mixed_sum::backward));
}
