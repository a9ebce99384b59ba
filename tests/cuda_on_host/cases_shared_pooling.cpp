#include "cases.h"
#include "shared_pooling/shared_pooling.h"

namespace fastnas::cases {
namespace {

using namespace shared_pooling;

struct Setting {
  int64_t images, height, width, channels, stride, gap;  // elements between two pixels
  int64_t edges;
  bool average, maximum;
};

template <class T>
void run_case(Run& run, const Setting& s) {
  const int64_t shift = s.gap % 2, pixel = s.channels + s.gap;
  Params p{};
  p.images = s.images, p.height = s.height, p.width = s.width, p.channels = s.channels, p.stride = s.stride;
  p.out_height = (s.height + s.stride - 1) / s.stride, p.out_width = (s.width + s.stride - 1) / s.stride;
  p.dtype = kDtype<T>;
  const int64_t pixels = s.images * s.height * s.width, outs = s.images * p.out_height * p.out_width;
  const Array<T> x(run, -2, 2, pixels, s.channels, pixel, shift),
      x_grad(run, -2, 2, pixels, s.channels, pixel, shift);
  const Array<T> average(s.average ? outs : 0, s.channels, pixel, shift);
  const Array<T> maximum(s.maximum ? outs : 0, s.channels, pixel, shift);
  p.x = x.data(), p.pixel = x.pixel();
  p.average = s.average ? average.data() : nullptr, p.average_pixel = average.pixel();
  p.maximum = s.maximum ? maximum.data() : nullptr, p.maximum_pixel = maximum.pixel();
  std::vector<Array<float>> norms;
  for (int64_t i = 0; i < 3; ++i) {  // the average's go to two branches
    if (i < 2 ? !s.average : !s.maximum) continue;
    norms.emplace_back(2, s.channels);
    (i < 2 ? p.average_norms : p.maximum_norms).push_back(norms.back().data());
  }
  check(fastnas_shared_pooling_forward(&p, Workspace(forward_workspace(p)).data(), nullptr));
  average.check(run, "average");
  maximum.check(run, "maximum");
  for (const Array<float>& each : norms) each.check(run, "mean and variance");

  std::vector<Array<T>> grads;
  std::vector<Array<float>> numbers;
  const auto drawn = [&](int64_t rows, int64_t channels) {
    return numbers.emplace_back(run, 0.5, 1.5, rows, channels).data();
  };
  const auto branch = [&](bool there, bool normalised) {
    Branch b{};
    if (there) b.weight = drawn(1, 1);
    if (there && normalised) b.coefficients = drawn(3, s.channels), b.mean = drawn(1, s.channels);
    return b;
  };
  for (int64_t k = 0; k < s.edges; ++k) {
    grads.emplace_back(run, -2, 2, outs, s.channels, pixel, shift);
    const Branch of_average = branch(s.average && k % 3 != 2, k % 2 == 0);
    const Branch of_maximum = branch(s.maximum && k % 4 != 3, k % 2 == 1);
    const void* skip = s.stride == 1 && k % 2 == 0 ? drawn(1, 1) : nullptr;
    p.edges.push_back({grads.back().data(), grads.back().pixel(), of_average, of_maximum, skip});
  }
  p.x_grad = x_grad.data(), p.x_grad_pixel = x_grad.pixel();
  check(fastnas_shared_pooling_backward(&p, Workspace(backward_workspace(p)).data(), nullptr));
  x_grad.check(run, "the state's gradient");
}

const Cases all("shared_pooling", [](Run& run) {
  for (const Setting& s : {Setting{2, 9, 7, 8, 1, 0, 4, true, true}, Setting{1, 1, 1, 1, 1, 0, 1, true, true},
                           Setting{1, 8, 6, 5, 2, 3, 3, true, true},
                           Setting{1, run.draw_size(5, 9), 35, 16, 2, 8, 2, true, true}}) {
    run_case<float>(run, s);
    run_case<BFloat16>(run, s);
  }
  run_case<float>(run, {1, 5, 4, 12, 1, 0, 2, true, false});
  run_case<float>(run, {1, 5, 4, 12, 2, 0, 2, false, true});
  run_case<float>(run, {1, 3, 3, 4, 1, 0, 40, true, true});   // more edges than one launch takes
  run_case<float>(run, {1, 3, 3, 270, 1, 0, 1, true, true});  // and channels
});

}  // namespace
}  // namespace fastnas::cases
