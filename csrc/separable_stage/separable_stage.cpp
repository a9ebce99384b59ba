// The separable stage's binding: the branch table, every check of its arguments, and the registration.
#include "separable_stage/separable_stage.h"

#include <algorithm>
#include <set>
#include <utility>

#include "images.h"
#include "separable_stage/run.h"
#include "separable_stage/table.h"
#include "stable.h"
#include "work.h"

namespace fastnas::separable_stage {
namespace {

constexpr const char* kOp = "separable_stage: ";

int64_t element_size(const Tensor& tensor) { return static_cast<int64_t>(tensor.element_size()); }

// What kernels for a GPU hand over in an argument.
void check_fits_gpu(const Params& params) {
  std::vector<int> branches(params.sources.size(), 0);
  for (const Branch& b : params.branches) ++branches[b.source];
  for (size_t s = 0; s < params.sources.size(); ++s)
    FASTNAS_CHECK(branches[s] <= kMaxSourceBranches, kOp, "on CUDA a source is read by at most ",
                  kMaxSourceBranches, " branches, source ", s, " by ", branches[s]);
}

// Of the statistics: sources read rows that no branch of the same call writes or reads.
void check_norms(const std::vector<int64_t>& source_norms, const std::vector<Row>& rows) {
  const std::set<int64_t> of_sources(source_norms.begin(), source_norms.end());
  for (const Row& r : rows)
    FASTNAS_CHECK(r.norm < 0 || of_sources.count(r.norm) == 0, kOp, "norm ", r.norm,
                  " is that of a source and of a branch");
}

// What forward and backward share. Outputs, statistics and gradients are filled in by them.
Params common(const std::vector<Tensor>& sources, const std::vector<int64_t>& source_norms,
              const Tensor& weights, const Tensor& statistics, const std::vector<Row>& rows, double eps,
              bool training, Touched& touched) {
  FASTNAS_CHECK(!sources.empty() && sources.size() == source_norms.size(), kOp,
                "one norm a source is needed");
  const Tensor& model = sources.front();
  check_runs(model, kOp, "sources");
  check_dense(weights, model, {weights.numel()}, kOp, "weights");
  FASTNAS_CHECK(statistics.dim() == 3 && statistics.size(1) == 2, kOp,
                "statistics must have shape (norms, 2, channels), got ", shape_text(statistics));
  check_dense(statistics, model, {statistics.size(0), 2, statistics.size(2)}, kOp, "statistics");
  Params params{{}, {}, model.size(0), eps, training, kernel_dtype(model)};
  const int64_t norms = statistics.size(0), channels = statistics.size(2);
  const int64_t number = element_size(statistics);
  char* norm_data = static_cast<char*>(statistics.data_ptr());
  const Images first = images_of(model, kOp, "sources");
  touched.reads(region_of("weights", weights));
  std::vector<bool> read(sources.size(), false);
  for (size_t s = 0; s < sources.size(); ++s) {
    const Images x = images_like(sources[s], model, kOp, "sources");
    check_size(x, first.count, x.channels, first.height, first.width, kOp, "sources");
    touched.reads(region_of("sources", x, model));
    const int64_t norm = source_norms[s];
    FASTNAS_CHECK(norm >= -1 && norm < norms && (norm < 0 || x.channels == channels), kOp, "source of ",
                  x.channels, " channels with norm ", norm, " among ", norms, " of ", channels);
    params.sources.push_back({x.data, x.pixel, x.height, x.width, x.channels,
                              norm < 0 ? nullptr : norm_data + norm * 2 * channels * number, nullptr, 0,
                              norm < 0, nullptr});
  }
  const char* weight_data = static_cast<const char*>(weights.data_ptr());
  for (const Row& r : rows) {
    const bool known = r.source >= 0 && r.source < static_cast<int64_t>(sources.size());
    check_row(r, static_cast<int64_t>(sources.size()), known ? sources[r.source].size(1) : 0, weights.numel(),
              norms, kOp);
    FASTNAS_CHECK(r.norm < 0 || r.out_channel <= channels - r.channels, kOp, "a norm has ", channels,
                  " channels, an output more");
    params.branches.push_back(branch_of(r, first.height, first.width, weight_data, number));
    read[r.source] = true;
  }
  for (size_t s = 0; s < read.size(); ++s)
    FASTNAS_CHECK(read[s], kOp, "no branch reads source ", s, " of ", read.size());
  check_norms(source_norms, rows);
  return params;
}

bool has_pixels(const Params& params) {
  return params.images > 0 && params.sources.front().height > 0 && params.sources.front().width > 0;
}

// Channels of outputs and of statistics.
void check_written_once(const std::vector<Row>& rows) {
  std::vector<Span> outs, norms;
  for (const Row& r : rows) {
    outs.push_back({r.out, r.out_channel, r.channels});
    if (r.norm >= 0) norms.push_back({r.norm, r.out_channel, r.channels});
  }
  FASTNAS_CHECK(are_apart(outs), kOp, "branches must write each channel of an output once");
  FASTNAS_CHECK(are_apart(norms), kOp, "branches must write each channel of a norm once");
}

std::vector<Tensor> forward(const std::vector<Tensor>& sources, const std::vector<int64_t>& source_norms,
                            const Tensor& weights, const Tensor& statistics,
                            const std::vector<int64_t>& table, double eps, bool training) {
  const std::vector<Row> rows = read_table(table, kOp);
  Touched touched(kOp);
  Params params = common(sources, source_norms, weights, statistics, rows, eps, training, touched);
  touched.writes(region_of("statistics", statistics));
  touched.check();
  check_written_once(rows);
  struct Out {
    int64_t channels = 0, height = 0, width = 0, written = 0;
  };
  std::vector<Out> wanted;
  for (size_t k = 0; k < rows.size(); ++k) {
    const Branch& b = params.branches[k];
    FASTNAS_CHECK(rows[k].out < static_cast<int64_t>(rows.size()), kOp, "output ", rows[k].out, " of ",
                  rows.size(), " branches");
    if (rows[k].out >= static_cast<int64_t>(wanted.size())) wanted.resize(rows[k].out + 1);
    Out& out = wanted[rows[k].out];
    FASTNAS_CHECK(out.channels == 0 || (out.height == b.height && out.width == b.width), kOp,
                  "branches of one output must have one size");
    out = {std::max(out.channels, rows[k].out_channel + rows[k].channels), b.height, b.width,
           out.written + rows[k].channels};
  }
  for (size_t i = 0; i < wanted.size(); ++i)
    FASTNAS_CHECK(wanted[i].channels > 0 && wanted[i].written == wanted[i].channels, kOp,
                  "branches must write each channel of an output once, output ", i, " has ",
                  wanted[i].channels, " and they write ", wanted[i].written);
  std::vector<Tensor> outs;
  for (const Out& out : wanted)
    outs.push_back(new_images(sources.front(), params.images, out.channels, out.height, out.width));
  const int64_t element = element_size(sources.front()), number = element_size(statistics);
  const int64_t channels = statistics.size(2);
  char* norm_data = static_cast<char*>(statistics.data_ptr());
  for (size_t k = 0; k < rows.size(); ++k) {
    const Row& r = rows[k];
    Branch& b = params.branches[k];
    b.raw = static_cast<char*>(outs[r.out].data_ptr()) + r.out_channel * element;
    b.raw_pixel = wanted[r.out].channels;
    if (r.norm >= 0) {
      b.mean = norm_data + (r.norm * 2 * channels + r.out_channel) * number;
      b.variance = norm_data + ((r.norm * 2 + 1) * channels + r.out_channel) * number;
    }
  }
  run_forward(params, sources.front());
  return outs;
}

// Of normalised sources backward writes rows of the coefficients.
void check_rows_once(std::vector<int64_t> norms) {
  std::sort(norms.begin(), norms.end());
  for (size_t i = 1; i < norms.size(); ++i)
    FASTNAS_CHECK(norms[i] < 0 || norms[i] != norms[i - 1], kOp, "norm ", norms[i],
                  " is that of two sources");
}

// Each branch's gradients are written where its weights lie.
void check_weights_apart(const Params& params, const std::vector<Row>& rows) {
  std::vector<Span> spans;
  for (const Row& r : rows) add_weights(r, params.sources[r.source].channels, spans);
  FASTNAS_CHECK(are_apart(spans), kOp, "branches whose weights overlap have no gradients of them");
}

void backward(const std::vector<Tensor>& grads, const std::vector<Tensor>& raws,
              const std::vector<Tensor>& sources, const std::vector<int64_t>& source_norms,
              const Tensor& weights, const Tensor& statistics, const Tensor& coefficients,
              const std::vector<int64_t>& table, double eps, bool training,
              const std::vector<Tensor>& weights_grad, const std::vector<Tensor>& source_grads) {
  const std::vector<Row> rows = read_table(table, kOp);
  Touched touched(kOp);
  Params params = common(sources, source_norms, weights, statistics, rows, eps, training, touched);
  touched.reads(region_of("statistics", statistics));
  touched.writes(region_of("coefficients", coefficients));
  const Tensor& model = sources.front();
  const int64_t element = element_size(model), number = element_size(statistics);
  const int64_t channels = statistics.size(2);
  check_dense(coefficients, model, {statistics.size(0), 3, channels}, kOp, "coefficients");
  char* coefficient_data = static_cast<char*>(coefficients.data_ptr());
  FASTNAS_CHECK(source_grads.size() == sources.size(), kOp, "one gradient a source is needed");
  for (size_t s = 0; s < sources.size(); ++s) {
    const Images grad = images_like(source_grads[s], model, kOp, "source_grads");
    Source& source = params.sources[s];
    check_size(grad, params.images, source.channels, source.height, source.width, kOp, "source_grads");
    touched.writes(region_of("source_grads", grad, model));
    source.grad = grad.data;
    source.grad_pixel = grad.pixel;
    if (source_norms[s] >= 0)
      source.coefficients = coefficient_data + source_norms[s] * 3 * channels * number;
  }
  check_rows_once(source_norms);
  FASTNAS_CHECK(weights_grad.size() <= 1, kOp, "weights_grad must be one tensor or none, got ",
                weights_grad.size());
  char* weights_grad_data = nullptr;
  if (!weights_grad.empty()) {
    check_dense(weights_grad.front(), model, {weights.numel()}, kOp, "weights_grad");
    check_weights_apart(params, rows);
    touched.writes(region_of("weights_grad", weights_grad.front()));
    weights_grad_data = static_cast<char*>(weights_grad.front().data_ptr());
  }
  for (size_t k = 0; k < rows.size(); ++k) {
    const Row& r = rows[k];
    Branch& b = params.branches[k];
    FASTNAS_CHECK(r.out < static_cast<int64_t>(raws.size()) && r.grad >= 0 &&
                      r.grad < static_cast<int64_t>(grads.size()) && r.norm >= 0,
                  kOp, "a branch names output ", r.out, " of ", raws.size(), ", gradient ", r.grad, " of ",
                  grads.size(), " and norm ", r.norm);
    const Images raw = images_like(raws[r.out], model, kOp, "raws");
    const Images grad = images_like(grads[r.grad], model, kOp, "grads");
    check_size(raw, params.images, raw.channels, b.height, b.width, kOp, "raws");
    check_size(grad, params.images, raw.channels, b.height, b.width, kOp, "grads");
    FASTNAS_CHECK(r.out_channel <= raw.channels - r.channels, kOp, "output ", r.out, " has too few channels");
    touched.reads(region_of("raws", raw, model));
    touched.reads(region_of("grads", grad, model));
    b.raw = static_cast<char*>(raw.data) + r.out_channel * element;
    b.raw_pixel = raw.pixel;
    b.grad = static_cast<char*>(grad.data) + r.out_channel * element;
    b.grad_pixel = grad.pixel;
    b.coefficients = coefficient_data + (r.norm * 3 * channels + r.out_channel) * number;
    b.coefficient_row = channels;
    b.mean = static_cast<char*>(statistics.data_ptr()) + (r.norm * 2 * channels + r.out_channel) * number;
    if (weights_grad_data != nullptr) want_weights_grad(r, weights_grad_data, number, b);
  }
  touched.check();
  run_backward(params, model);
  if (!has_pixels(params) && !weights_grad.empty()) {
    Tensor zeros = weights_grad.front();
    torch::stable::zero_(zeros);
  }
}

// Multiply-adds of one pass of a branch's depthwise convolution, and of its 1x1 or dense one.
std::pair<int64_t, int64_t> products(const Params& params, const Branch& b) {
  const int64_t inputs = params.sources[b.source].channels, taps = b.kernel * b.kernel;
  const int64_t positions = params.images * b.height * b.width;
  if (b.dense) return {0, positions * taps * inputs * b.channels};
  return {positions * taps * inputs, positions * inputs * b.channels};
}

int64_t weight_numbers(const Params& params, const Branch& b) {
  const int64_t inputs = params.sources[b.source].channels, taps = b.kernel * b.kernel;
  return inputs * (b.dense ? taps * b.channels : taps + b.channels);
}

// Both convolutions of every branch, once.
Work forward_work(const Params& params) {
  int64_t multiply_adds = 0, elements = 0;
  for (const Source& s : params.sources) elements += params.images * s.height * s.width * s.channels;
  for (const Branch& b : params.branches) {
    const auto [depthwise, pointwise] = products(params, b);
    multiply_adds += depthwise + pointwise;
    elements += params.images * b.height * b.width * b.channels + weight_numbers(params, b);
  }
  return {2 * multiply_adds * multiply_adds_of(params.dtype), elements * size_of(params.dtype)};
}

// Each convolution's gradient of its input; with weights' gradients those, and depthwise outputs again.
Work backward_work(const Params& params) {
  int64_t multiply_adds = 0, elements = 0;
  for (const Source& s : params.sources)  // read; its gradient is written or added to
    elements += params.images * s.height * s.width * s.channels * (s.add ? 3 : 2);
  std::set<const void*> grads;
  for (const Branch& b : params.branches) {
    const auto [depthwise, pointwise] = products(params, b);
    const bool weights = b.pointwise_grad != nullptr;
    const int64_t outputs = params.images * b.height * b.width * b.channels;
    multiply_adds += weights ? 3 * depthwise + 2 * pointwise : depthwise + pointwise;
    elements += (grads.insert(b.grad).second ? 2 : 1) * outputs;
    elements += (weights ? 2 : 1) * weight_numbers(params, b);
  }
  return {2 * multiply_adds * multiply_adds_of(params.dtype), elements * size_of(params.dtype)};
}

}  // namespace

void run_forward(const Params& params, const Tensor& model) {
  if (!has_pixels(params)) return;
  if (cuda::on_gpu(model)) check_fits_gpu(params);
  const Counted counted("separable_stage", forward_work(params));
  FASTNAS_RUN("separable_stage", model, fastnas_separable_stage_forward_workspace(&params),
              fastnas_separable_stage_forward, forward_cpu, params);
}

void run_backward(const Params& params, const Tensor& model) {
  if (!has_pixels(params)) return;
  if (cuda::on_gpu(model)) check_fits_gpu(params);
  const Counted counted("separable_stage_backward", backward_work(params));
  FASTNAS_RUN("separable_stage_backward", model, fastnas_separable_stage_backward_workspace(&params),
              fastnas_separable_stage_backward, backward_cpu, params);
}

}  // namespace fastnas::separable_stage

FASTNAS_REGISTER(m) {
  m.impl("separable_stage", TORCH_BOX(&fastnas::separable_stage::forward));
  m.impl("separable_stage_backward", TORCH_BOX(&fastnas::separable_stage::backward));
}
