#include "cases.h"
#include "cell/pixel_sum.h"

namespace fastnas::cases {
namespace {

template <class T>
void run_case(Run& run, int64_t pixels, int64_t channels, int64_t gap) {
  const Array<T> x(run, -2, 2, pixels, channels, channels + gap, gap % 2);
  const Array<float> scale(run, -1, 1, channels), out(channels);
  const cell::PixelSum params{x.data(), x.pixel(), pixels, channels, scale.data(), out.data(), kDtype<T>};
  check(fastnas_sum_pixels(&params, nullptr, nullptr));
  out.check(run, "the sums");
}

const Cases all("pixel_sum", [](Run& run) {
  run_case<float>(run, 1, 1, 0);
  run_case<float>(run, run.draw_size(600, 700), 3, 1);
  run_case<BFloat16>(run, 300, 5, 3);
});

}  // namespace
}  // namespace fastnas::cases
