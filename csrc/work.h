// What the native ops have done in this process, for benchmarks: where the time went, and at which rates.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>

namespace fastnas {

// Floating-point operations, 2 a multiply-add, that the algorithm runs (what it computes again counts again;
// ReLU, normalisation and statistics do not), and the bytes of images and weights that it reads or writes,
// each once, and twice where it adds to them.
struct Work {
  int64_t flops, bytes;
};

struct Record {
  int64_t calls = 0;
  double seconds = 0;
  int64_t flops = 0, bytes = 0;
};

// Counts one call of `op`, a literal, from here to the end of the block.
class Counted {
 public:
  Counted(const char* op, const Work& work)
      : op_(op), work_(work), begin_(std::chrono::steady_clock::now()) {}
  ~Counted();
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;

 private:
  const char* op_;
  Work work_;
  std::chrono::steady_clock::time_point begin_;
};

// Of every op since the process began. On a GPU seconds are those of the launches.
std::map<std::string, Record> records();

}  // namespace fastnas
