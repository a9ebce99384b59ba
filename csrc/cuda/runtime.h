// What a binding needs to run its kernels where the tensors are: torch's current stream, a workspace, and
// errors as sentences. In builds without CUDA it answers CUDA tensors with one sentence. No kernel includes
// it.
#pragma once

#include "stable.h"

#ifdef FASTNAS_WITH_CUDA
#include <cuda_runtime_api.h>
#endif
#if defined(FASTNAS_WITH_CUDA) && !defined(FASTNAS_CUDA_ON_HOST)
#include <dlfcn.h>
#endif

namespace fastnas::cuda {

// Whether an op's CUDA kernels have to do it. In the tests' build for the host they always have.
inline bool on_gpu(const Tensor& tensor) {
#ifdef FASTNAS_CUDA_ON_HOST
  (void)tensor;
  return true;
#else
  return tensor.is_cuda();
#endif
}

// One of an op's checks: a CUDA tensor needs a build with CUDA kernels.
inline void check_built(const char* op, const Tensor& tensor) {
#ifdef FASTNAS_WITH_CUDA
  (void)op, (void)tensor;
#else
  FASTNAS_CHECK(!tensor.is_cuda(), op, "the tensors are on ", device_text(tensor),
                ", but this build of fastnas has no CUDA kernels; rebuild it with FASTNAS_CUDA=1");
#endif
}

#ifdef FASTNAS_WITH_CUDA

#ifdef FASTNAS_CUDA_ON_HOST

struct DeviceGuard {
  explicit DeviceGuard(const Tensor&) {}
};
inline cudaStream_t current_stream(const Tensor&) { return nullptr; }

#else

struct DeviceGuard {
  explicit DeviceGuard(const Tensor& tensor) : guard(tensor.get_device_index()) {}
  torch::stable::accelerator::DeviceGuard guard;
};

// Torch's current stream. The symbol is looked up when first needed: the extension is also built against a
// torch without CUDA, which does not have it.
inline cudaStream_t current_stream(const Tensor& tensor) {
  using Getter = AOTITorchError (*)(int32_t, void**);
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  if (getter == nullptr)
    throw std::runtime_error("fastnas: the torch that runs has no CUDA (libtorch_cuda.so)");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(getter(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

#endif

inline void check(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // or the next op would find it
  throw std::runtime_error(concat(op, ": CUDA error: ", cudaGetErrorString(error)));
}

// Calls launcher(&params, workspace, stream) on the device of `model`. The workspace, so many bytes (null for
// none), comes from torch's caching allocator, which reuses it in stream order.
template <class Params>
void run(const char* op, const Tensor& model, int64_t workspace_bytes,
         cudaError_t (*launcher)(const Params*, void*, cudaStream_t), const Params& params) {
  const DeviceGuard guard(model);
  Tensor workspace;
  void* scratch = nullptr;
  if (workspace_bytes > 0) {
    workspace = torch::stable::new_empty(model, {workspace_bytes}, ScalarType::Byte);
    scratch = workspace.data_ptr();
  }
  check(op, launcher(&params, scratch, current_stream(model)));
}

#endif

// Runs an op on the device of `model`: launcher (see `run`) on a GPU, cpu(params) on the CPU.
#if defined(FASTNAS_CUDA_ON_HOST)
#define FASTNAS_RUN(op, model, workspace_bytes, launcher, cpu, params) \
  ::fastnas::cuda::run(op, model, workspace_bytes, launcher, params)
#elif defined(FASTNAS_WITH_CUDA)
#define FASTNAS_RUN(op, model, workspace_bytes, launcher, cpu, params)                                \
  ::fastnas::cuda::on_gpu(model) ? ::fastnas::cuda::run(op, model, workspace_bytes, launcher, params) \
                                 : cpu(params)
#else
#define FASTNAS_RUN(op, model, workspace_bytes, launcher, cpu, params) cpu(params)
#endif

}  // namespace fastnas::cuda
