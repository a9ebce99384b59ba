// Work split over torch's own threads in chunks whose bounds depend on the problem alone, so that results do
// not depend on the number of threads.
#pragma once

#include <algorithm>

#include "stable.h"

namespace fastnas::cpu {

// Calls body(chunk, begin, end) for every chunk [begin, end) of [0, n).
template <class Body>
void for_each_chunk(int64_t n, int64_t chunk_size, const Body& body) {
  const int64_t chunks = (n + chunk_size - 1) / chunk_size;
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk)
      body(chunk, chunk * chunk_size, std::min(n, (chunk + 1) * chunk_size));
  });
}

// Calls body(task, scratch) for every task of [0, tasks), with one scratch = make() for all tasks of a thread.
template <class Make, class Body>
void for_each_task(int64_t tasks, const Make& make, const Body& body) {
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t first, int64_t last) {
    auto scratch = make();
    for (int64_t task = first; task < last; ++task) body(task, scratch);
  });
}

}  // namespace fastnas::cpu
