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

}  // namespace fastnas::cpu
