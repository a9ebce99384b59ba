#include "cpu/capability.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fastnas::cpu {

Capability detected_capability() {
#if FASTNAS_X86
  __builtin_cpu_init();
  // The same sets that for_each_level.h compiles for.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return Capability::avx512;
  if (avx2) return Capability::avx2;
#endif
  return Capability::baseline;
}

namespace {

Capability capped_by_environment() {
  const char* name = std::getenv("FASTNAS_CPU_CAPABILITY");
  if (name == nullptr || *name == '\0') return detected_capability();
  for (int level = 0; level < 3; ++level)
    if (std::string(name) == kCapabilityNames[level])
      return std::min(static_cast<Capability>(level), detected_capability());
  throw std::invalid_argument("FASTNAS_CPU_CAPABILITY must be baseline, avx2 or avx512, got '" +
                              std::string(name) + "'");
}

}  // namespace

Capability capability() {
  static const Capability level = capped_by_environment();
  return level;
}

}  // namespace fastnas::cpu
