// Calls of the normalised mixed sum's launchers with several sums, which its binding never makes, from
// numbers: of each sum {branches, out, out_pixel, add}, then of each of its branches {x, pixel, norm, weight,
// coefficients, weight_grad}, pointers as numbers.
#include "normalised_mixed_sum/normalised_mixed_sum.h"

using fastnas::Dtype;
using fastnas::normalised_mixed_sum::Params;

namespace {

template <class T>
T* pointer(int64_t number) {
  return reinterpret_cast<T*>(number);
}

}  // namespace

extern "C" int several_sums(const int64_t* numbers, int64_t count, int64_t pixels, int64_t channels,
                            int64_t dtype, double eps, bool backward) {
  std::vector<Params> sums;
  for (int64_t i = 0; i < count; ++i) {
    Params p{};
    const int64_t branches = *numbers++;
    p.out = pointer<void>(*numbers++), p.out_pixel = *numbers++, p.add = *numbers++ != 0;
    p.pixels = pixels, p.channels = channels, p.eps = eps, p.training = true;
    p.dtype = static_cast<Dtype>(dtype);
    for (int64_t k = 0; k < branches; ++k, numbers += 6)
      p.branches.push_back({pointer<const void>(numbers[0]), numbers[1], pointer<const void>(numbers[2]),
                            pointer<const void>(numbers[3]), pointer<void>(numbers[4]),
                            pointer<void>(numbers[5])});
    sums.push_back(p);
  }
  using namespace fastnas::normalised_mixed_sum;
  const int64_t bytes = backward ? backward_workspace(sums) : forward_workspace(sums);
  std::vector<float> workspace(bytes / 4, __builtin_nanf(""));
  return backward ? fastnas_normalised_mixed_sum_backward(&sums, workspace.data(), nullptr)
                  : fastnas_normalised_mixed_sum_forward(&sums, workspace.data(), nullptr);
}
