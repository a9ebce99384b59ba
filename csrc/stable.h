// The one door to torch: its stable ABI, targeted at torch 2.11, so that one build loads on every later
// torch. Only bindings (csrc/<op>/<op>.cpp) and registry.cpp include it; kernels see raw pointers.
#pragma once

#define TORCH_TARGET_VERSION ((2ULL << 56) | (11ULL << 48))

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "dtype.h"

// A user's mistake: std::invalid_argument becomes a ValueError, which fastnas.ops re-raises as FastnasError.
// The message is put together only when the check fails.
#define FASTNAS_CHECK(condition, ...) \
  if (!(condition)) throw std::invalid_argument(::fastnas::concat(__VA_ARGS__))

// The library that ops are registered in. Kernels for the GPU built for the host, in tests, have one of their
// own, whose kernels run on tensors of the CPU.
#ifdef FASTNAS_CUDA_ON_HOST
#define FASTNAS_LIBRARY fastnas_on_host
#else
#define FASTNAS_LIBRARY fastnas
#endif

// FASTNAS_REGISTER(m) { m.impl(...); } registers what follows for tensors of the CPU and of CUDA. Once a
// file. FASTNAS_REGISTER_BUILT leaves CUDA out of a build without CUDA kernels: there the plain-PyTorch
// reference that fastnas/ops registers for every other device does the op.
#define FASTNAS_REGISTER(m)                                                      \
  static void register_ops(torch::stable::detail::StableLibrary& m);             \
  STABLE_TORCH_LIBRARY_IMPL(FASTNAS_LIBRARY, CPU, cpu) { register_ops(cpu); }    \
  STABLE_TORCH_LIBRARY_IMPL(FASTNAS_LIBRARY, CUDA, cuda) { register_ops(cuda); } \
  static void register_ops(torch::stable::detail::StableLibrary& m)
#ifdef FASTNAS_WITH_CUDA
#define FASTNAS_REGISTER_BUILT(m) FASTNAS_REGISTER(m)
#else
#define FASTNAS_REGISTER_BUILT(m) STABLE_TORCH_LIBRARY_IMPL(FASTNAS_LIBRARY, CPU, m)
#endif

namespace fastnas {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// a b of numbers that are not negative, or the largest number there is.
inline int64_t product(int64_t a, int64_t b) {
  int64_t result = 0;
  return __builtin_mul_overflow(a, b, &result) ? std::numeric_limits<int64_t>::max() : result;
}

template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

// "(64, 16, 32, 32)", and "(8,)" for one dimension, as Python writes them.
inline std::string shape_text(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t d = 0; d < tensor.dim(); ++d) text += (d ? ", " : "") + std::to_string(tensor.size(d));
  return text + (tensor.dim() == 1 ? ",)" : ")");
}

// "float32", as torch's Python names it without "torch.".
inline std::string dtype_text(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return concat(dtype);
  }
}
inline std::string dtype_text(const Tensor& tensor) { return dtype_text(tensor.scalar_type()); }

inline std::string device_text(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  return concat(tensor.is_cuda() ? "cuda:" : "device ", tensor.get_device_index());
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.is_cuda() == b.is_cuda() &&
         a.get_device_index() == b.get_device_index();
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != b.size(d)) return false;
  return true;
}

// The dtypes that kernels know; call it only after the op's own check has refused every other one.
inline Dtype kernel_dtype(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Dtype::float32;
    case ScalarType::Double:
      return Dtype::float64;
    case ScalarType::BFloat16:
      return Dtype::bfloat16;
    case ScalarType::ComplexFloat:
      return Dtype::dual32;
    case ScalarType::ComplexDouble:
      return Dtype::dual64;
    default:
      throw std::logic_error("kernel_dtype: a dtype that no kernel knows, " + dtype_text(tensor));
  }
}

}  // namespace fastnas
