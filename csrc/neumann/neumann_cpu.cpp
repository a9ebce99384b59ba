// neumann_step_ on the CPU: the split into chunks and the norm; the arithmetic is in the kernel file.
#include "cpu/element.h"
#include "cpu/parallel.h"
#include "neumann/neumann.h"
#include "vector_norm/vector_norm.h"

namespace fastnas::neumann {

using namespace fastnas::cpu;  // NOLINT: the kernel file is written against cpu's names

#define FASTNAS_KERNEL_FILE "neumann/neumann_cpu_kernel.h"
#include "cpu/for_each_level.h"

namespace {

template <class T>
void step_chunk(const Params& p, T factor, int64_t begin, int64_t end) {
  FASTNAS_DISPATCH(step_chunk<T>, p, factor, begin, end);
}

// A chunk's squares are summed up while it is in the cache: vector_norm's bits without its pass.
template <class T>
void step(const Params& p) {
  using vector_norm::kChunk;
  const T scale = factor<T>(p);
  std::vector<double> squares((p.n + kChunk - 1) / kChunk);
  for_each_chunk(p.n, kChunk, [&](int64_t chunk, int64_t begin, int64_t end) {
    step_chunk<T>(p, scale, begin, end);
    squares[chunk] = vector_norm::squares(static_cast<const T*>(p.v), begin, end);
  });
  *p.new_norm = vector_norm::norm_from(squares);
}

}  // namespace

void step_cpu(const Params& p) { p.dtype == Dtype::float64 ? step<double>(p) : step<float>(p); }

}  // namespace fastnas::neumann
