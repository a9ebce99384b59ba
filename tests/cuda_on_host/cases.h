// What the cases of all ops share (cases_<op>.cpp). Each op's launchers run on small and odd sizes, on memory
// of exactly the size that they may touch; run_cases.cpp is the program, test_sanitized.py builds and judges.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda/device.cuh"
#include "dtype.h"

namespace fastnas::cases {

using cuda::BFloat16;

template <class T>
inline constexpr Dtype kDtype = std::is_same_v<T, float>    ? Dtype::float32
                                : std::is_same_v<T, double> ? Dtype::float64
                                                            : Dtype::bfloat16;

template <class T>
T number(double value) {
  if constexpr (std::is_same_v<T, BFloat16>)
    return cuda::from_float<T>(static_cast<float>(value));
  else
    return static_cast<T>(value);
}
inline double number_of(BFloat16 value) { return cuda::to_float(value); }
inline double number_of(double value) { return value; }

// What a row of pixels holds between its channels, and outputs before they are written.
template <class T>
T nothing() {
  return number<T>(std::numeric_limits<double>::quiet_NaN());
}

// The draws of an op's cases and the checksum of what came out: two builds must agree in it.
class Run {
 public:
  double draw(double from, double to) {  // not by the library's distributions, which differ
    return from + (to - from) * (static_cast<double>(random_() >> 11) / 9007199254740992.0);
  }
  int64_t draw_size(int64_t from, int64_t to) {
    return from + static_cast<int64_t>(random_() % (to - from + 1));
  }

  void add(const void* bytes, size_t size) {
    for (size_t i = 0; i < size; ++i)
      checksum = (checksum ^ static_cast<const uint8_t*>(bytes)[i]) * 1099511628211u;
  }

  uint64_t checksum = 14695981039346656037u;

 private:
  std::mt19937_64 random_{20240229};
};

// Numbers of a launcher's argument: `count` pixels of `channels` numbers, `pixel` apart. Memory ends with the
// last of them. Begins 16-byte aligned, or `shift` elements further.
template <class T>
class Array {
 public:
  Array() = default;
  // Nothing yet: an output.
  explicit Array(int64_t count, int64_t channels = 1, int64_t pixel = 0, int64_t shift = 0)
      : count_(count), channels_(channels), pixel_(pixel ? pixel : channels), shift_(shift) {
    const int64_t size = count * channels == 0 ? 0 : (count - 1) * pixel_ + channels;
    memory_.reset(new T[size + shift]);
    for (int64_t i = 0; i < size + shift; ++i) memory_[i] = nothing<T>();
  }
  // Drawn from [from, to): an input, or an output that is added to.
  Array(Run& run, double from, double to, int64_t count, int64_t channels = 1, int64_t pixel = 0,
        int64_t shift = 0)
      : Array(count, channels, pixel, shift) {
    each([&](T& value) { value = number<T>(run.draw(from, to)); });
  }

  T* data() const { return memory_ ? memory_.get() + shift_ : nullptr; }
  int64_t pixel() const { return pixel_; }
  int64_t count() const { return count_; }

  // That every number was written and nothing between them, and what was written.
  void check(Run& run, const char* name) const {
    each([&](T& value) {
      if (!std::isfinite(number_of(value)))
        throw std::logic_error(std::string(name) + " holds a number that is not finite");
      run.add(&value, sizeof(T));
    });
    const T expected = nothing<T>();
    for (int64_t p = 0; p + 1 < count_; ++p)
      for (int64_t c = channels_; c < pixel_; ++c)
        if (std::memcmp(data() + p * pixel_ + c, &expected, sizeof(T)) != 0)
          throw std::logic_error(std::string(name) + " was written between its pixels");
  }

 private:
  template <class Do>
  void each(const Do& act) const {
    for (int64_t p = 0; p < count_; ++p)
      for (int64_t c = 0; c < channels_; ++c) act(data()[p * pixel_ + c]);
  }

  std::unique_ptr<T[]> memory_;
  int64_t count_ = 0, channels_ = 0, pixel_ = 0, shift_ = 0;
};

// What a launcher gets for a workspace: so many bytes and no more, not written yet.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : memory_(bytes > 0 ? new unsigned char[bytes] : nullptr) {
    if (bytes > 0) std::memset(memory_.get(), 0xff, bytes);
  }
  void* data() const { return memory_.get(); }

 private:
  std::unique_ptr<unsigned char[]> memory_;
};

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::logic_error("a launcher returned an error");
}

// An op's cases enter themselves here.
struct Op {
  const char* name;
  std::function<void(Run&)> run;
};
std::vector<Op>& ops();
struct Cases {
  Cases(const char* name, std::function<void(Run&)> run) { ops().push_back({name, std::move(run)}); }
};

}  // namespace fastnas::cases
