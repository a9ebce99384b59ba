// Shared pooling's binding: every check of its arguments, and the registration.
#include <algorithm>

#include "cuda/runtime.h"
#include "images.h"
#include "shared_pooling/run.h"
#include "work.h"

namespace fastnas::shared_pooling {
namespace {

constexpr const char* kOp = "shared_pooling: ";

Params params_of(const Tensor& x, int64_t stride) {
  check_runs(x, kOp, "x");
  FASTNAS_CHECK(stride >= 1, kOp, "stride must be positive, got ", stride);
  const Images images = images_of(x, kOp, "x");
  Params p{};
  p.x = images.data, p.pixel = images.pixel, p.images = images.count, p.channels = images.channels;
  p.height = images.height, p.width = images.width, p.stride = stride;
  p.out_height = strided(images.height, stride), p.out_width = strided(images.width, stride);
  p.dtype = kernel_dtype(x);
  return p;
}

bool has_elements(const Params& p) { return p.images > 0 && p.height > 0 && p.width > 0 && p.channels > 0; }

// Where row `norm` of a (norms, rows, channels) tensor begins.
void* row_of(const Tensor& tensor, int64_t norm, const Params& p) {
  FASTNAS_CHECK(norm >= 0 && norm < tensor.size(0) && tensor.size(2) == p.channels, kOp, "norm ", norm,
                " of ", p.channels, " channels among ", tensor.size(0), " of ", tensor.size(2));
  return static_cast<char*>(tensor.data_ptr()) +
         norm * tensor.size(1) * tensor.size(2) * static_cast<int64_t>(tensor.element_size());
}

// Each pooling writes its mean and variance into rows of its own.
void check_once(const std::vector<int64_t>& average_norms, const std::vector<int64_t>& maximum_norms) {
  std::vector<int64_t> norms = average_norms;
  norms.insert(norms.end(), maximum_norms.begin(), maximum_norms.end());
  std::sort(norms.begin(), norms.end());
  const auto twice = std::adjacent_find(norms.begin(), norms.end());
  FASTNAS_CHECK(twice == norms.end(), kOp, "norm ", *twice, " is given twice");
}

std::vector<Tensor> forward(const Tensor& x, int64_t stride, bool average, bool maximum,
                            const std::vector<int64_t>& average_norms,
                            const std::vector<int64_t>& maximum_norms, const Tensor& statistics) {
  Params p = params_of(x, stride);
  FASTNAS_CHECK(statistics.dim() == 3 && statistics.size(1) == 2, kOp,
                "statistics must have shape (norms, 2, channels), got ", shape_text(statistics));
  check_dense(statistics, x, {statistics.size(0), 2, statistics.size(2)}, kOp, "statistics");
  FASTNAS_CHECK((average || average_norms.empty()) && (maximum || maximum_norms.empty()), kOp,
                "norms are given for a pooling that is not wanted");
  check_once(average_norms, maximum_norms);
  Touched touched(kOp);
  touched.reads(region_of("x", images_of(x, kOp, "x"), x));
  touched.writes(region_of("statistics", statistics));
  touched.check();
  for (const int64_t norm : average_norms) p.average_norms.push_back(row_of(statistics, norm, p));
  for (const int64_t norm : maximum_norms) p.maximum_norms.push_back(row_of(statistics, norm, p));
  p.average_pixel = p.maximum_pixel = p.channels;
  std::vector<Tensor> pooled;
  for (const auto& [wanted, data] : {std::pair{average, &p.average}, std::pair{maximum, &p.maximum}})
    if (wanted) {
      pooled.push_back(new_images(x, p.images, p.channels, p.out_height, p.out_width));
      *data = pooled.back().data_ptr();
    }
  run_forward(p, x);
  return pooled;
}

constexpr size_t kColumns = 5;  // average norm and weight, maximum norm and weight, skip weight; -1: none

void backward(const Tensor& x, int64_t stride, const std::vector<Tensor>& average,
              const std::vector<Tensor>& maximum, const std::vector<Tensor>& grads,
              const std::vector<int64_t>& table, const Tensor& statistics, const Tensor& coefficients,
              const Tensor& weights, const Tensor& x_grad) {
  Params p = params_of(x, stride);
  FASTNAS_CHECK(table.size() == kColumns * grads.size(), kOp, "the table must hold ", kColumns,
                " numbers an edge, got ", table.size(), " for ", grads.size(), " edges");
  FASTNAS_CHECK(coefficients.dim() == 3 && coefficients.size(1) == 3, kOp,
                "coefficients must have shape (norms, 3, channels), got ", shape_text(coefficients));
  check_dense(coefficients, x, {coefficients.size(0), 3, coefficients.size(2)}, kOp, "coefficients");
  check_dense(statistics, x, {coefficients.size(0), 2, coefficients.size(2)}, kOp, "statistics");
  check_dense(weights, x, {weights.numel()}, kOp, "weights");
  FASTNAS_CHECK(average.size() <= 1 && maximum.size() <= 1, kOp,
                "average and maximum must be one tensor each, or none, got ", average.size(), " and ",
                maximum.size());
  Touched touched(kOp);
  for (const auto& [given, data, pixel] : {std::tuple{&average, &p.average, &p.average_pixel},
                                           std::tuple{&maximum, &p.maximum, &p.maximum_pixel}})
    if (!given->empty()) {
      const char* name = given == &average ? "average" : "maximum";
      const Images pooled = images_like(given->front(), x, kOp, name);
      check_size(pooled, p.images, p.channels, p.out_height, p.out_width, kOp, name);
      *data = pooled.data;
      *pixel = pooled.pixel;
      touched.reads(region_of(name, pooled, x));
    }
  const Images to = images_like(x_grad, x, kOp, "x_grad");
  check_size(to, p.images, p.channels, p.height, p.width, kOp, "x_grad");
  p.x_grad = to.data;
  p.x_grad_pixel = to.pixel;
  touched.writes(region_of("x_grad", to, x));
  touched.reads(region_of("x", images_of(x, kOp, "x"), x));
  touched.reads(region_of("statistics", statistics));
  touched.reads(region_of("coefficients", coefficients));
  touched.reads(region_of("weights", weights));
  const auto weight = [&](int64_t index) -> const void* {
    FASTNAS_CHECK(index < weights.numel(), kOp, "weight ", index, " of ", weights.numel());
    return index < 0 ? nullptr
                     : static_cast<const char*>(weights.data_ptr()) +
                           index * static_cast<int64_t>(weights.element_size());
  };
  const auto branch = [&](int64_t norm, int64_t index) -> Branch {
    if (norm < 0) return {nullptr, nullptr, weight(index)};
    return {row_of(coefficients, norm, p), row_of(statistics, norm, p), weight(index)};
  };
  for (size_t e = 0; e < grads.size(); ++e) {
    const Images grad = images_like(grads[e], x, kOp, "grads");
    check_size(grad, p.images, p.channels, p.out_height, p.out_width, kOp, "grads");
    touched.reads(region_of("grads", grad, x));
    const int64_t* row = table.data() + e * kColumns;
    FASTNAS_CHECK(row[4] < 0 || stride == 1, kOp, "a skip-connection has stride 1");
    FASTNAS_CHECK(
        (!average.empty() || (row[0] < 0 && row[1] < 0)) && (!maximum.empty() || (row[2] < 0 && row[3] < 0)),
        kOp, "an edge has a pooling whose output is not given");
    p.edges.push_back(
        {grad.data, grad.pixel, branch(row[0], row[1]), branch(row[2], row[3]), weight(row[4])});
  }
  touched.check();
  run_backward(p, x);
}

int64_t pooled_elements(const Params& p) { return p.images * p.out_height * p.out_width * p.channels; }

// Nine taps for each pooled number.
Work forward_work(const Params& p) {
  const int64_t kinds = (p.average != nullptr ? 1 : 0) + (p.maximum != nullptr ? 1 : 0);
  const int64_t state = p.images * p.height * p.width * p.channels, pooled = kinds * pooled_elements(p);
  return {9 * pooled * multiply_adds_of(p.dtype), (state + pooled) * size_of(p.dtype)};
}

// One multiply-add an edge and kind, another for b (p - mean) where it is normalised, then the taps.
Work backward_work(const Params& p) {
  const int64_t state = p.images * p.height * p.width * p.channels, pooled = pooled_elements(p);
  int64_t flops = 0, elements = 3 * state;  // x is read, its gradient added to
  for (const auto& [given, branch] :
       {std::pair{p.average, &Edge::average}, std::pair{p.maximum, &Edge::maximum}}) {
    if (given == nullptr) continue;
    flops += 9;
    elements += pooled;
    for (const Edge& e : p.edges)
      if ((e.*branch).coefficients != nullptr || (e.*branch).weight != nullptr)
        flops += (e.*branch).coefficients != nullptr ? 4 : 2;
  }
  for (const Edge& e : p.edges) {
    const bool pools = e.average.weight != nullptr || e.maximum.weight != nullptr;
    if (e.skip_weight != nullptr) flops += 2;
    if (pools || e.skip_weight != nullptr) elements += pooled;
  }
  return {flops * pooled * multiply_adds_of(p.dtype), elements * size_of(p.dtype)};
}

}  // namespace

void run_forward(const Params& p, const Tensor& model) {
  if (!has_elements(p)) return;
  const Counted counted("shared_pooling", forward_work(p));
  FASTNAS_RUN("shared_pooling", model, forward_workspace(p), fastnas_shared_pooling_forward, forward_cpu, p);
}

void run_backward(const Params& p, const Tensor& model) {
  if (!has_elements(p)) return;
  const Counted counted("shared_pooling_backward", backward_work(p));
  FASTNAS_RUN("shared_pooling_backward", model, backward_workspace(p), fastnas_shared_pooling_backward,
              backward_cpu, p);
}

}  // namespace fastnas::shared_pooling

FASTNAS_REGISTER(m) {
  m.impl("shared_pooling", TORCH_BOX(&fastnas::shared_pooling::forward));
  m.impl("shared_pooling_backward", TORCH_BOX(&fastnas::shared_pooling::backward));
}
