// virtual_step_ on the CPU: the split into chunks; the arithmetic is in the kernel file.
#include "cpu/element.h"
#include "cpu/parallel.h"
#include "virtual_step/virtual_step.h"

namespace fastnas::virtual_step {

using namespace fastnas::cpu;  // NOLINT: the kernel file is written against cpu's names

// A step's constants, in the type that it is computed in.
template <class T>
struct Factors {
  T learning_rate, momentum, weight_decay;
};

#define FASTNAS_KERNEL_FILE "virtual_step/virtual_step_cpu_kernel.h"
#include "cpu/for_each_level.h"

namespace {

constexpr int64_t kChunk = 16384;  // work enough to hand to a thread

template <class T>
void step_chunk(const Params& p, const Factors<T>& factors, int64_t begin, int64_t end) {
  FASTNAS_DISPATCH(step_chunk<T>, p, factors, begin, end);
}

template <class T>
void step(const Params& p) {
  const Factors<T> factors{static_cast<T>(p.rate ? *p.rate : p.learning_rate), static_cast<T>(p.momentum),
                           static_cast<T>(p.weight_decay)};
  for_each_chunk(p.n, kChunk,
                 [&](int64_t, int64_t begin, int64_t end) { step_chunk<T>(p, factors, begin, end); });
}

}  // namespace

void step_cpu(const Params& p) { p.dtype == Dtype::float64 ? step<double>(p) : step<float>(p); }

}  // namespace fastnas::virtual_step
