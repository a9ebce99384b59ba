// Memory for whole vectors of any level.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace fastnas::cpu {

enum class Fill { zero, none };

// `size` elements from a boundary of 64 bytes.
template <class T>
class AlignedArray {
 public:
  AlignedArray() = default;
  explicit AlignedArray(int64_t size, Fill fill = Fill::zero)
      : data_(static_cast<T*>(::operator new(static_cast<size_t>(size) * sizeof(T), kAlignment))) {
    if (fill == Fill::zero) std::fill(data_.get(), data_.get() + size, T(0));
  }
  T* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Delete {
    void operator()(T* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<T[], Delete> data_;
};

}  // namespace fastnas::cpu
