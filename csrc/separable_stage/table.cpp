#include "separable_stage/table.h"

#include <algorithm>

#include "images.h"

namespace fastnas::separable_stage {
namespace {

constexpr int64_t kMostChannels = std::numeric_limits<int64_t>::max();

bool is_dense(const Row& r) { return r.kernel > 0 && r.depthwise == kDense; }

}  // namespace

std::vector<Row> read_table(const std::vector<int64_t>& table, const char* op) {
  FASTNAS_CHECK(!table.empty() && table.size() % kColumns == 0, op, "the table must hold ", kColumns,
                " numbers a branch, got ", table.size());
  std::vector<Row> rows;
  for (size_t i = 0; i < table.size(); i += kColumns)
    rows.push_back({table[i], table[i + 1], table[i + 2], table[i + 3], table[i + 4], table[i + 5],
                    table[i + 6], table[i + 7], table[i + 8], table[i + 9], table[i + 10], table[i + 11]});
  return rows;
}

void check_row(const Row& r, int64_t sources, int64_t inputs, int64_t weights, int64_t norms,
               const char* op) {
  FASTNAS_CHECK(r.source >= 0 && r.source < sources, op, "branch of source ", r.source, " among ", sources);
  FASTNAS_CHECK(r.kernel == 0 || r.kernel == 3 || r.kernel == 5 || r.kernel == 7, op,
                "kernel must be 3, 5, 7, or 0 for none, got ", r.kernel);
  FASTNAS_CHECK((r.dilation == 1 || r.dilation == 2) && (r.stride == 1 || r.stride == 2) && r.channels >= 1,
                op, "dilation and stride must be 1 or 2 and channels positive, got ", r.dilation, ", ",
                r.stride, " and ", r.channels);
  FASTNAS_CHECK(r.shift >= 0 && r.shift < r.stride && (r.shift == 0 || r.kernel == 0), op,
                "shift must be less than the stride, and 0 with a depthwise kernel, got ", r.shift);
  const bool dense = is_dense(r);
  FASTNAS_CHECK(!dense || (r.stride == 1 && r.dilation == 1), op,
                "a dense convolution has stride and dilation 1, got ", r.stride, " and ", r.dilation);
  FASTNAS_CHECK(inputs >= 1, op, "sources must have channels, source ", r.source, " has none");
  std::vector<Span> spans;
  add_weights(r, inputs, spans);
  for (const Span& span : spans)
    FASTNAS_CHECK(span.begin >= 0 && span.size <= weights && span.begin <= weights - span.size, op,
                  "a branch's weights lie outside of the ", weights, " given");
  FASTNAS_CHECK(r.out >= 0 && r.out_channel >= 0 && r.out_channel <= kMostChannels - r.channels, op,
                "out and its channel must not be negative nor beyond all bounds, got ", r.out, " and ",
                r.out_channel);
  FASTNAS_CHECK(r.norm >= -1 && r.norm < norms, op, "norm ", r.norm, " among ", norms);
}

bool are_apart(std::vector<Span> spans) {
  std::sort(spans.begin(), spans.end(),
            [](const Span& a, const Span& b) { return a.of != b.of ? a.of < b.of : a.begin < b.begin; });
  for (size_t i = 1; i < spans.size(); ++i)
    if (spans[i].of == spans[i - 1].of && spans[i].begin < spans[i - 1].begin + spans[i - 1].size)
      return false;
  return true;
}

void add_weights(const Row& r, int64_t inputs, std::vector<Span>& spans) {
  const int64_t taps = r.kernel * r.kernel;
  if (r.kernel > 0 && !is_dense(r)) spans.push_back({0, r.depthwise, product(inputs, taps)});
  spans.push_back({0, r.pointwise, product(product(inputs, r.channels), is_dense(r) ? taps : 1)});
}

Branch branch_of(const Row& r, int64_t height, int64_t width, const char* weights, int64_t element) {
  Branch b{};
  b.source = r.source, b.kernel = r.kernel, b.dilation = r.dilation, b.stride = r.stride, b.shift = r.shift;
  b.height = strided(height, r.stride), b.width = strided(width, r.stride);
  b.channels = r.channels;
  b.dense = is_dense(r);
  b.depthwise = r.kernel == 0 || b.dense ? nullptr : weights + r.depthwise * element;
  b.pointwise = weights + r.pointwise * element;
  return b;
}

void want_weights_grad(const Row& r, char* weights_grad, int64_t element, Branch& b) {
  if (b.depthwise != nullptr) b.depthwise_grad = weights_grad + r.depthwise * element;
  b.pointwise_grad = weights_grad + r.pointwise * element;
}

}  // namespace fastnas::separable_stage
