// Work split over torch's own threads in chunks whose bounds depend on the problem alone, so that results do
// not depend on the number of threads.
#pragma once

#include <algorithm>
#include <atomic>

#include "stable.h"

namespace fastnas::cpu {

// Calls body(task, scratch) for every task of [0, tasks), with one scratch = make() for all tasks of a
// thread. Threads take the next task when they are done with one: a core that something else holds up does
// less of them. What a task computes must not depend on the thread.
template <class Make, class Body>
void for_each_task(int64_t tasks, const Make& make, const Body& body) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(tasks, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    int64_t task = next++;
    if (task >= tasks) return;
    auto scratch = make();
    for (; task < tasks; task = next++) body(task, scratch);
  });
}

// Calls body(chunk, begin, end) for every chunk [begin, end) of [0, n).
template <class Body>
void for_each_chunk(int64_t n, int64_t chunk_size, const Body& body) {
  const auto nothing = [] { return 0; };
  for_each_task((n + chunk_size - 1) / chunk_size, nothing, [&](int64_t chunk, int) {
    body(chunk, chunk * chunk_size, std::min(n, (chunk + 1) * chunk_size));
  });
}

// Elements that one thread copies in about the time that a parallel region takes to begin and end, several
// microseconds.
inline constexpr int64_t kFewElements = 16384;

// As for_each_chunk, but on the calling thread where all chunks together cost no more than copying few
// elements.
template <class Body>
void for_each_chunk_of(int64_t elements, int64_t n, int64_t chunk_size, const Body& body) {
  if (elements > kFewElements) return for_each_chunk(n, chunk_size, body);
  for (int64_t chunk = 0, begin = 0; begin < n; ++chunk, begin += chunk_size)
    body(chunk, begin, std::min(n, begin + chunk_size));
}

}  // namespace fastnas::cpu
