// What a binding needs to start a CUDA launcher: torch's current stream, a workspace, and errors as
// sentences. In builds without CUDA it answers CUDA tensors with one sentence. No kernel includes it.
#pragma once

#include "stable.h"

#ifdef FASTNAS_WITH_CUDA
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#endif

namespace fastnas::cuda {

// One of an op's checks: a CUDA tensor needs a build with CUDA kernels.
inline void check_built(const char* op, const Tensor& tensor) {
#ifdef FASTNAS_WITH_CUDA
  (void)op, (void)tensor;
#else
  FASTNAS_CHECK(!tensor.is_cuda(), op, ": the tensors are on ", device_text(tensor),
                ", but this build of fastnas has no CUDA kernels; rebuild it with FASTNAS_CUDA=1");
#endif
}

#ifdef FASTNAS_WITH_CUDA

// Torch's current stream. The symbol is looked up when first needed: the extension is also built against a
// torch without CUDA, which does not have it.
inline cudaStream_t current_stream(int32_t device) {
  using Getter = AOTITorchError (*)(int32_t, void**);
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  if (getter == nullptr)
    throw std::runtime_error("fastnas: the torch that runs has no CUDA (libtorch_cuda.so)");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(getter(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// Calls launcher(&params, workspace, stream) on the device of `model`. The workspace, `workspace_size` floats
// (null for none), comes from torch's caching allocator, which reuses it in stream order.
template <class Params>
void run(const char* op, const Tensor& model, int64_t workspace_size,
         cudaError_t (*launcher)(const Params*, float*, cudaStream_t), const Params& params) {
  const torch::stable::accelerator::DeviceGuard guard(model.get_device_index());
  Tensor workspace;
  float* scratch = nullptr;
  if (workspace_size > 0) {
    workspace = torch::stable::new_empty(model, {workspace_size}, ScalarType::Float);
    scratch = static_cast<float*>(workspace.data_ptr());
  }
  const cudaError_t error = launcher(&params, scratch, current_stream(model.get_device_index()));
  if (error != cudaSuccess) throw std::runtime_error(concat(op, ": CUDA error: ", cudaGetErrorString(error)));
}

#define FASTNAS_CUDA_RUN(op, model, workspace_size, launcher, params) \
  ::fastnas::cuda::run(op, model, workspace_size, launcher, params)

#else

// Never reached: check_built has refused.
#define FASTNAS_CUDA_RUN(op, model, workspace_size, launcher, params) (void)0

#endif

}  // namespace fastnas::cuda
