// Where tensors lie: whether their storage holds them, and whether what an op writes lies apart from all else
// that it touches.
#pragma once

#include "stable.h"

namespace fastnas {

// Whether the storage holds all elements: it can be freed or made smaller behind a tensor's back.
inline bool is_stored(const Tensor& tensor) {
  if (tensor.numel() == 0) return true;
  int64_t last = tensor.storage_offset(), bytes = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
  return last < bytes / static_cast<int64_t>(tensor.element_size());
}

// Raises unless it does. `op` and `name` say whose argument it is.
inline void check_stored(const Tensor& tensor, const char* op, const char* name) {
  FASTNAS_CHECK(is_stored(tensor), op, name, " must have memory for its elements ", shape_text(tensor),
                "; its storage was freed or made smaller");
}

// `count` runs of `bytes`, `step` apart.
struct Region {
  const char* name;
  const char* begin;
  int64_t bytes, step, count;

  bool is_empty() const { return bytes == 0 || count == 0; }
  const char* end() const { return begin + (count - 1) * step + bytes; }
};

// Of a contiguous tensor.
inline Region region_of(const char* name, const Tensor& tensor) {
  const int64_t bytes = tensor.numel() * static_cast<int64_t>(tensor.element_size());
  return {name, static_cast<const char*>(tensor.data_ptr()), bytes, bytes, 1};
}

// Slices of the same channels-last tensor lie apart, though one begins before the other ends.
inline bool overlap(const Region& a, const Region& b) {
  if (a.is_empty() || b.is_empty() || a.end() <= b.begin || b.end() <= a.begin) return false;
  const int64_t step = a.count > 1 ? a.step : b.step;
  if (a.count > 1 && b.count > 1 && a.step != b.step) return true;  // seldom not, and then by chance
  const int64_t between = ((b.begin - a.begin) % step + step) % step;
  return between < a.bytes || between + b.bytes > step;
}

// What an op writes and reads. Kernels go over it in any order, by several threads.
class Touched {
 public:
  explicit Touched(const char* op) : op_(op) {}
  void writes(const Region& region) { written_.push_back(region); }
  void reads(const Region& region) { read_.push_back(region); }
  // Raises if something that is written is also read, or written twice.
  void check() const {
    for (size_t i = 0; i < written_.size(); ++i) {
      for (size_t j = 0; j < i; ++j) check_apart(written_[i], written_[j]);
      for (const Region& region : read_) check_apart(written_[i], region);
    }
  }

 private:
  void check_apart(const Region& a, const Region& b) const {
    FASTNAS_CHECK(!overlap(a, b), op_, a.name, " is written and must not overlap ", b.name, " in memory");
  }
  const char* op_;
  std::vector<Region> written_, read_;
};

}  // namespace fastnas
