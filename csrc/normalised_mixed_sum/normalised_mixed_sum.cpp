// The normalised mixed sum's binding: every check of its arguments, and the registration.
#include <algorithm>
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

// What forward and backward share; `out` is the result or its gradient, called `name`. What they read is
// entered in `touched`.
Params common(const Tensor& out, const char* name, const std::vector<Tensor>& branches,
              const std::vector<int64_t>& norms, const Tensor& weights, const std::vector<int64_t>& indices,
              const Tensor& statistics, double eps, bool training, Touched& touched) {
  check_runs(out, kOp, name);
  FASTNAS_CHECK(!branches.empty() && norms.size() == branches.size() && indices.size() == branches.size(),
                kOp, "one norm and one weight a branch are needed, and at least one branch");
  FASTNAS_CHECK(statistics.dim() == 3 && statistics.size(1) == 2, kOp,
                "statistics must have shape (norms, 2, channels), got ", shape_text(statistics));
  check_dense(statistics, out, {statistics.size(0), 2, statistics.size(2)}, kOp, "statistics");
  check_dense(weights, out, {weights.numel()}, kOp, "weights");
  const Images to = images_of(out, kOp, name);
  touched.reads(region_of("statistics", statistics));
  touched.reads(region_of("weights", weights));
  const int64_t channels = statistics.size(2), element = statistics.element_size();
  const char* norm_data = static_cast<const char*>(statistics.data_ptr());
  const char* weight_data = static_cast<const char*>(weights.data_ptr());
  // Of a batch without elements sizes may be beyond all bounds; those of norms are in memory.
  const bool normalised = std::any_of(norms.begin(), norms.end(), [](int64_t norm) { return norm >= 0; });
  const bool empty = out.numel() == 0;
  Params params{{},  to.data, to.pixel, empty ? 0 : to.pixels(), empty && !normalised ? 0 : to.channels,
                eps, false,   training, kernel_dtype(out)};
  for (size_t k = 0; k < branches.size(); ++k) {
    const Images x = images_like(branches[k], out, kOp, "branches");
    check_size(x, to.count, to.channels, to.height, to.width, kOp, "branches");
    FASTNAS_CHECK(
        norms[k] >= -1 && norms[k] < statistics.size(0) && (norms[k] < 0 || channels == to.channels), kOp,
        "norm ", norms[k], " of ", to.channels, " channels among ", statistics.size(0), " of ", channels);
    FASTNAS_CHECK(indices[k] >= -1 && indices[k] < weights.numel(), kOp, "weight ", indices[k], " of ",
                  weights.numel());
    touched.reads(region_of("branches", x, out));
    params.branches.push_back(
        {x.data, x.pixel, norms[k] < 0 ? nullptr : norm_data + norms[k] * 2 * channels * element,
         indices[k] < 0 ? nullptr : weight_data + indices[k] * element, nullptr, nullptr});
  }
  return params;
}

// Enters what rectified branches have: of branch k row rectified[k] of `affine` (rows, 2, C), if that is not
// -1.
void rectify(Params& params, const Tensor& model, const std::optional<Tensor>& affine,
             const std::vector<int64_t>& rectified, Touched& touched) {
  FASTNAS_CHECK(affine || rectified.empty(), kOp, "rectified branches need affine, got None");
  if (!affine) return;
  const int64_t rows = affine->dim() == 3 ? affine->size(0) : 0;
  check_dense(*affine, model, {rows, 2, model.size(1)}, kOp, "affine");
  touched.reads(region_of("affine", *affine));
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
  Touched touched(kOp);
  Params params = common(out, "out", branches, norms, weights, indices, statistics, eps, false, touched);
  params.add = add;
  rectify(params, out, affine, rectified, touched);
  touched.writes(region_of("out", images_of(out, kOp, "out"), out));
  touched.check();
  run_forward({params}, out);
}

// Backward writes one gradient a row, so no two branches may share one.
void check_once(std::vector<int64_t> rows, const char* name) {
  std::sort(rows.begin(), rows.end());
  const auto used = std::lower_bound(rows.begin(), rows.end(), 0);
  const auto twice = std::adjacent_find(used, rows.end());
  FASTNAS_CHECK(twice == rows.end(), kOp, "backward needs a ", name, " of its own for each branch, ", name,
                " ", *twice, " has two");
}

// Where backward writes what it finds for rectified branches: row i of both tensors, i the branch's row of
// `affine`. Whether `passed` is `grad` itself, as it may be of one branch.
bool want(Params& params, const Tensor& grad, const std::vector<int64_t>& rectified, const Tensor& affine,
          const std::optional<Tensor>& passed, const std::optional<Tensor>& affine_grad, Touched& touched) {
  const int64_t rows = affine.size(0);
  check_once(rectified, "row of affine");
  FASTNAS_CHECK(passed && affine_grad, kOp, "backward of rectified branches needs passed and affine_grad");
  check_dense(*affine_grad, grad, {rows, 2, grad.size(1)}, kOp, "affine_grad");
  const Images g = images_of(grad, kOp, "grad"), all = images_like(*passed, grad, kOp, "passed");
  check_size(all, product(rows, g.count), g.channels, g.height, g.width, kOp, "passed");
  const int64_t images = params.pixels * all.pixel * size_of(params.dtype);
  touched.writes(region_of("affine_grad", *affine_grad));
  touched.writes(region_of("passed", all, grad));
  for (size_t k = 0; k < rectified.size(); ++k) {
    if (rectified[k] < 0) continue;
    Branch& b = params.branches[k];
    b.affine_grad = row_of(*affine_grad, rectified[k]);
    b.passed = static_cast<char*>(all.data) + rectified[k] * images;
    b.passed_pixel = all.pixel;
  }
  return rows == 1 && params.branches.size() == 1 && all.data == g.data && all.pixel == g.pixel;
}

void backward(const Tensor& grad, const std::vector<Tensor>& branches, const std::vector<int64_t>& norms,
              const Tensor& weights, const std::vector<int64_t>& indices, const Tensor& statistics,
              double eps, bool training, const Tensor& coefficients, const Tensor& weights_grad,
              std::optional<Tensor> affine, const std::vector<int64_t>& rectified,
              std::optional<Tensor> passed, std::optional<Tensor> affine_grad) {
  Touched touched(kOp);
  Params params = common(grad, "grad", branches, norms, weights, indices, statistics, eps, training, touched);
  check_once(norms, "norm");
  check_once(indices, "weight");
  check_dense(coefficients, grad, {statistics.size(0), 3, statistics.size(2)}, kOp, "coefficients");
  check_dense(weights_grad, grad, {weights.numel()}, kOp, "weights_grad");
  touched.writes(region_of("coefficients", coefficients));
  touched.writes(region_of("weights_grad", weights_grad));
  const int64_t element = statistics.element_size();
  char* coefficient_data = static_cast<char*>(coefficients.data_ptr());
  char* weights_grad_data = static_cast<char*>(weights_grad.data_ptr());
  for (size_t k = 0; k < branches.size(); ++k) {
    Branch& b = params.branches[k];
    if (norms[k] >= 0) b.coefficients = coefficient_data + norms[k] * 3 * statistics.size(2) * element;
    if (indices[k] >= 0) b.weight_grad = weights_grad_data + indices[k] * element;
  }
  rectify(params, grad, affine, rectified, touched);
  const bool in_place = affine && want(params, grad, rectified, *affine, passed, affine_grad, touched);
  if (!in_place) touched.reads(region_of("grad", images_of(grad, kOp, "grad"), grad));
  touched.check();
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
