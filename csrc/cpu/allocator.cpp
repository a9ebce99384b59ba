#include "cpu/allocator.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/pages.h"

#ifdef __GLIBC__
#include <malloc.h>
#include <unistd.h>
#endif

namespace fastnas::cpu {
namespace {

// Up to here the heap has been advised; 0: the heap is left as it is.
std::atomic<uintptr_t> advised{0};

#ifdef __GLIBC__
uintptr_t heap_end() { return reinterpret_cast<uintptr_t>(sbrk(0)); }
#endif

}  // namespace

void keep_freed_memory() {
  const char* given = std::getenv("FASTNAS_KEEP_MEMORY");
  const std::string wanted = given == nullptr || *given == '\0' ? "1" : given;
  if (wanted != "0" && wanted != "1")
    throw std::invalid_argument("FASTNAS_KEEP_MEMORY must be 0 or 1, got '" + wanted + "'");
#ifdef __GLIBC__
  if (wanted == "1") {
    mallopt(M_TRIM_THRESHOLD, -1);        // never give the heap's top back
    mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the largest that glibc takes: blocks up to it come from the heap
    mallopt(M_TOP_PAD, 64 << 20);         // grow in steps that hold whole huge pages
    advised = heap_end();
  }
#endif
}

void advise_new_heap() {
#ifdef __GLIBC__
  uintptr_t begin = advised;
  const uintptr_t end = heap_end();
  if (begin == 0 || end <= begin || !advised.compare_exchange_strong(begin, end)) return;
  advise_huge_pages(reinterpret_cast<void*>(begin), end - begin);
#endif
}

}  // namespace fastnas::cpu
