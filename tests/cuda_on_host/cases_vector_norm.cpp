#include "cases.h"
#include "vector_norm/vector_norm.h"

namespace fastnas::cases {
namespace {

template <class T>
void run_case(Run& run, int64_t n, int64_t shift) {
  const Array<T> vector(run, -2, 2, n, 1, 1, shift);
  const Array<double> norm(1);
  const vector_norm::Params params{vector.data(), norm.data(), n, kDtype<T>};
  check(fastnas_vector_norm(&params, Workspace(vector_norm::workspace(n)).data(), nullptr));
  norm.check(run, "norm");
}

const Cases all("vector_norm", [](Run& run) {
  for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{1027}, run.draw_size(3000, 4000)})
    for (const int64_t shift : {0, 1}) {
      run_case<float>(run, n, shift);
      run_case<double>(run, n, shift);
    }
});

}  // namespace
}  // namespace fastnas::cases
