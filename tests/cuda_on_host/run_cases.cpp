// run_cases [OP...]: runs the cases of these ops, or of all, and prints a checksum each; under
// ThreadSanitizer also the barriers that were met.
#include <algorithm>
#include <cstdio>

#include "cases.h"

namespace fastnas::cases {

std::vector<Op>& ops() {
  static std::vector<Op> all;
  return all;
}

}  // namespace fastnas::cases

int main(int count, char** arguments) {
  using namespace fastnas::cases;
  std::sort(ops().begin(), ops().end(),
            [](const Op& a, const Op& b) { return std::strcmp(a.name, b.name) < 0; });
  for (const Op& op : ops()) {
    if (count > 1 && std::find(arguments + 1, arguments + count, std::string(op.name)) == arguments + count)
      continue;
    Run run;
    op.run(run);
    std::printf("%s %016llx\n", op.name, static_cast<unsigned long long>(run.checksum));
#ifdef __SANITIZE_THREAD__
    for (const std::string& place : cuda_on_host::places)
      std::printf("barrier %s %s\n", op.name, place.c_str());
    cuda_on_host::places.clear();
#endif
    std::fflush(stdout);
  }
  return 0;
}
