// Page faults of fresh outputs. An allocator that has returned its memory to the system hands out pages that
// do not exist yet, and making them, 4 KiB at a time, costs several times what a kernel that fills them does.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fastnas::cpu {

// Asks for huge pages inside [begin, begin + bytes): one fault instead of 512. A hint that changes no value
// and adds no memory to the block; where the system refuses it, pages stay small.
inline void advise_huge_pages(void* begin, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t{2} << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + page - 1) & ~(page - 1);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + bytes) & ~(page - 1);
  if (first < last) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)begin, (void)bytes;
#endif
}

}  // namespace fastnas::cpu
