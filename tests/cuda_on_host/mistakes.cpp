// mistakes NAME: runs a launch that makes one mistake, or none, by which test_sanitized.py sees that each
// would be reported.
#include <cstdio>

#include "cases.h"

namespace {

using fastnas::cases::Array;
using fastnas::cases::Run;

constexpr int kThreads = 64;

// One flag each, so that the compiler knows nothing.
struct Mistake {
  bool lost_barrier, same_place_early, same_place_late, neighbours_place, too_far, read_too_far,
      too_far_shared, too_far_dynamic, ended_thread, two_barriers, unset_shared, misaligned;
};

// out[b] = the sum of the numbers that block b holds.
__global__ void __launch_bounds__(kThreads)
    sum_kernel(Mistake mistake, const float* numbers, float* out, float* other) {
  __shared__ float scratch[kThreads];
  FASTNAS_DYNAMIC_SHARED(bytes);
  float* dynamic = reinterpret_cast<float*>(bytes);
  float* fixed = scratch;
  const int t = static_cast<int>(threadIdx.x), b = static_cast<int>(blockIdx.x);
  if (mistake.same_place_early && t == 0) other[0] = 1;
  if (mistake.neighbours_place && t == 0) other[b] = b + 1 < static_cast<int>(gridDim.x) ? other[b + 1] : 1;
  dynamic[t + mistake.too_far_dynamic] = numbers[b * kThreads + t + mistake.read_too_far];
  if (!mistake.unset_shared || t > 0) fixed[t + mistake.too_far_shared] = 0;
  if (mistake.misaligned && t == 0) other[0] = fastnas::cuda::load_pack<true>(numbers + 1, 0, 4).values[0];
  if (mistake.ended_thread && t == 5) return;
  if (!mistake.lost_barrier) __syncthreads();
  if (mistake.two_barriers) {
    if (t % 2 == 0)
      __syncthreads();
    else
      __syncthreads();
  }
  fixed[t] += dynamic[kThreads - 1 - t];
  const float total = fastnas::cuda::block_sum<kThreads>(fixed[t], fixed);
  if (t == 0) out[b + mistake.too_far] = total;
  if (mistake.same_place_late && t == 0) other[0] = 1;
}

}  // namespace

int main(int, char** arguments) {
  const std::string name = arguments[1];
  Mistake mistake{};
  int64_t blocks = 4;
  size_t shared = kThreads * sizeof(float);
#define FASTNAS_MISTAKE(each) \
  if (name == #each) mistake.each = true
  FASTNAS_MISTAKE(lost_barrier);
  FASTNAS_MISTAKE(same_place_early);
  FASTNAS_MISTAKE(same_place_late);
  FASTNAS_MISTAKE(neighbours_place);
  FASTNAS_MISTAKE(too_far);
  FASTNAS_MISTAKE(read_too_far);
  FASTNAS_MISTAKE(too_far_shared);
  FASTNAS_MISTAKE(too_far_dynamic);
  FASTNAS_MISTAKE(ended_thread);
  FASTNAS_MISTAKE(two_barriers);
  FASTNAS_MISTAKE(unset_shared);
  FASTNAS_MISTAKE(misaligned);
  if (name == "no_blocks") blocks = 0;
  if (name == "much_shared") shared = (48 << 10) + 1;
  Run run;
  const Array<float> numbers(run, -1, 1, 4 * kThreads), out(4), other(run, 0, 1, 4);
  FASTNAS_LAUNCH_SHARED(sum_kernel, static_cast<unsigned>(blocks), kThreads, shared, nullptr, mistake,
                        numbers.data(), out.data(), other.data());
  out.check(run, "out");
  std::printf("%s %016llx\n", name.c_str(), static_cast<unsigned long long>(run.checksum));
  return 0;
}
