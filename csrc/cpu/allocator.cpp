#include "cpu/allocator.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace fastnas::cpu {

void keep_freed_memory() {
  const char* given = std::getenv("FASTNAS_KEEP_MEMORY");
  const std::string wanted = given == nullptr || *given == '\0' ? "1" : given;
  if (wanted != "0" && wanted != "1")
    throw std::invalid_argument("FASTNAS_KEEP_MEMORY must be 0 or 1, got '" + wanted + "'");
#ifdef __GLIBC__
  if (wanted == "1") {
    mallopt(M_TRIM_THRESHOLD, -1);        // never give the heap's top back
    mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the largest that glibc takes: blocks up to it come from the heap
  }
#endif
}

}  // namespace fastnas::cpu
