#include "work.h"

#include <mutex>

namespace fastnas {
namespace {

std::mutex guard;
std::map<std::string, Record>& all() {
  static std::map<std::string, Record> records;
  return records;
}

}  // namespace

Counted::~Counted() {
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin_;
  const std::lock_guard<std::mutex> lock(guard);
  Record& record = all()[op_];
  record.calls += 1;
  record.seconds += elapsed.count();
  record.flops += work_.flops;
  record.bytes += work_.bytes;
}

std::map<std::string, Record> records() {
  const std::lock_guard<std::mutex> lock(guard);
  return all();
}

}  // namespace fastnas
