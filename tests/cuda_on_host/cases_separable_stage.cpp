#include "cases.h"
#include "separable_stage/separable_stage.h"

namespace fastnas::cases {
namespace {

using namespace separable_stage;

struct Kind {
  int64_t source, kernel, dilation, stride, shift;
  bool dense;
};

struct Setting {
  std::vector<Kind> kinds;
  int64_t images, height, width, inputs, outputs, gap;  // elements between two pixels
  bool normalised, training, weights_wanted;
};

template <class T>
void run_case(Run& run, const Setting& s) {
  const int64_t shift = s.gap % 2, pixels = s.images * s.height * s.width;
  const auto images = [&](int64_t count, int64_t channels) {
    return Array<T>(run, -2, 2, count, channels, channels + s.gap, shift);
  };
  std::vector<Array<T>> tensors, source_grads, raws;
  std::vector<Array<float>> numbers, outputs, statistics;
  const auto drawn = [&](double from, double to, int64_t rows, int64_t channels) {
    return numbers.emplace_back(run, from, to, rows, channels).data();
  };
  const auto wanted = [&](int64_t count) { return outputs.emplace_back(count).data(); };

  Params p{};
  p.images = s.images, p.eps = 1e-5, p.training = s.training, p.dtype = kDtype<T>;
  int64_t sources = 0;
  for (const Kind& kind : s.kinds) sources = std::max(sources, kind.source + 1);
  for (int64_t i = 0; i < sources; ++i) {
    Source source{};
    const Array<T>& x = tensors.emplace_back(images(pixels, s.inputs));
    source.x = x.data(), source.pixel = x.pixel();
    source.height = s.height, source.width = s.width, source.channels = s.inputs;
    source.norm = s.normalised ? drawn(0.5, 1.5, 2, s.inputs) : nullptr;
    source.add = !s.normalised && i % 2 == 0;
    if (source.add)
      source_grads.push_back(images(pixels, s.inputs));
    else
      source_grads.emplace_back(pixels, s.inputs, s.inputs + s.gap, shift);
    source.grad = source_grads.back().data(), source.grad_pixel = source_grads.back().pixel();
    source.coefficients = s.normalised ? wanted(3 * s.inputs) : nullptr;
    p.sources.push_back(source);
  }
  for (const Kind& kind : s.kinds) {
    Branch b{};
    b.source = kind.source, b.kernel = kind.kernel, b.dense = kind.dense;
    b.dilation = kind.dilation, b.stride = kind.stride, b.shift = kind.shift;
    b.height = (s.height + kind.stride - 1) / kind.stride;
    b.width = (s.width + kind.stride - 1) / kind.stride;
    b.channels = s.outputs;
    const int64_t taps = kind.kernel * kind.kernel, count = s.images * b.height * b.width;
    const bool depthwise = !kind.dense && kind.kernel > 0;
    b.depthwise = depthwise ? drawn(-1, 1, s.inputs, taps) : nullptr;
    b.pointwise = drawn(-1, 1, s.outputs, s.inputs * (kind.dense ? taps : 1));
    b.raw = raws.emplace_back(count, s.outputs, s.outputs + s.gap, shift).data();
    b.raw_pixel = raws.back().pixel();
    if (s.training) {
      b.mean = statistics.emplace_back(s.outputs).data();
      b.variance = statistics.emplace_back(s.outputs).data();
    }
    p.branches.push_back(b);
  }
  check(fastnas_separable_stage_forward(&p, Workspace(fastnas_separable_stage_forward_workspace(&p)).data(),
                                        nullptr));
  for (const Array<T>& each : raws) each.check(run, "raw");
  for (const Array<float>& each : statistics) each.check(run, "mean or variance");

  for (Branch& b : p.branches) {
    const Array<T>& grad = tensors.emplace_back(images(s.images * b.height * b.width, s.outputs));
    b.grad = grad.data(), b.grad_pixel = grad.pixel();
    b.coefficients = drawn(0.5, 1.5, 3, s.outputs), b.coefficient_row = s.outputs;
    if (!s.training) b.mean = drawn(-1, 1, 1, s.outputs);
    if (!s.weights_wanted) continue;
    const int64_t taps = b.kernel * b.kernel;
    b.depthwise_grad = b.depthwise == nullptr ? nullptr : wanted(s.inputs * taps);
    b.pointwise_grad = wanted(s.outputs * s.inputs * (b.dense ? taps : 1));
  }
  check(fastnas_separable_stage_backward(&p, Workspace(fastnas_separable_stage_backward_workspace(&p)).data(),
                                         nullptr));
  for (const Array<T>& each : source_grads) each.check(run, "a source's gradient");
  for (const Array<float>& each : outputs) each.check(run, "coefficients or a weight's gradient");
}

const std::vector<Kind> kSeparable{{0, 3, 1, 1, 0, false}, {1, 5, 2, 1, 0, false}};
const std::vector<Kind> kReducing{{0, 3, 2, 2, 0, false}, {0, 0, 1, 2, 0, false}, {0, 0, 1, 2, 1, false}};
const std::vector<Kind> kDense{{0, 3, 1, 1, 0, true}, {0, 0, 1, 1, 0, false}};

const Cases all("separable_stage", [](Run& run) {
  run_case<float>(run, {kSeparable, 2, 5, 6, 8, 8, 0, false, true, true});
  run_case<float>(run, {kSeparable, 1, 4, 3, 5, 5, 3, true, true, true});
  run_case<BFloat16>(run, {kSeparable, 1, run.draw_size(3, 6), 5, 8, 8, 0, true, true, true});
  run_case<float>(run, {kReducing, 1, 7, 5, 6, 5, 1, false, true, true});
  run_case<BFloat16>(run, {kReducing, 2, 4, 4, 4, 8, 4, false, false, true});
  run_case<float>(run, {kDense, 1, 4, 5, 4, 5, 0, true, true, true});
  run_case<float>(run, {kDense, 1, 1, 1, 1, 1, 0, false, false, false});
  run_case<float>(run, {{{0, 7, 1, 1, 0, false}}, 1, 17, 19, 4, 4, 0, false, true, true});  // several tiles
  run_case<float>(run, {{{0, 3, 1, 1, 0, false}}, 1, 3, 3, 20, 70, 0, false, true, true});  // wide products
  run_case<BFloat16>(run, {{{0, 3, 1, 1, 0, false}}, 2, 9, 9, 36, 36, 0, false, true, true});
});

}  // namespace
}  // namespace fastnas::cases
