// The separable stage's launchers: what kernels get to see, and what lies where in the workspace. They
// neither allocate nor synchronise.
#include <algorithm>
#include <vector>

#include "separable_stage/forward.cuh"
#include "separable_stage/inner_gradient.cuh"
#include "separable_stage/parts.cuh"
#include "separable_stage/source_gradient.cuh"
#include "separable_stage/weight_gradient.cuh"

namespace fastnas::separable_stage {
namespace {

using cuda::BFloat16;

// Shares of the tiles whose weights' gradients are summed on their own: a function of sizes alone.
constexpr int64_t kWeightBlocks = 384;

// ---------------------------------------------------------------------------- what kernels see

template <class T>
bool four_aligned(const void* data, int64_t pixel, int64_t channels) {
  return channels % 4 == 0 && pixel % 4 == 0 && reinterpret_cast<uintptr_t>(data) % (4 * sizeof(T)) == 0;
}

template <class T>
SourceView<T> view_of(const Source& s) {
  return {static_cast<const T*>(s.x),
          static_cast<const float*>(s.norm),
          s.pixel,
          to_int(s.height),
          to_int(s.width),
          to_int(s.channels),
          four_aligned<T>(s.x, s.pixel, s.channels)};
}

template <class T>
BranchView<T> view_of(const Params& p, const Branch& b) {
  BranchView<T> view{};
  view.source = view_of<T>(p.sources[b.source]);
  view.depthwise = static_cast<const float*>(b.depthwise);
  view.pointwise = static_cast<const float*>(b.pointwise);
  view.raw = static_cast<T*>(b.raw), view.raw_pixel = b.raw_pixel;
  view.mean = static_cast<float*>(b.mean), view.variance = static_cast<float*>(b.variance);
  view.grad = static_cast<const T*>(b.grad), view.grad_pixel = b.grad_pixel;
  view.coefficients = static_cast<const float*>(b.coefficients), view.coefficient_row = b.coefficient_row;
  view.depthwise_grad = static_cast<float*>(b.depthwise_grad);
  view.pointwise_grad = static_cast<float*>(b.pointwise_grad);
  view.kernel = to_int(b.kernel), view.dilation = to_int(b.dilation), view.stride = to_int(b.stride);
  view.shift = to_int(b.shift), view.channels = to_int(b.channels);
  view.dense = b.dense, view.relu = true;
  view.raw_aligned = four_aligned<T>(b.raw, b.raw_pixel, b.channels) &&
                     (b.grad == nullptr || four_aligned<T>(b.grad, b.grad_pixel, b.channels));
  return view;
}

// ---------------------------------------------------------------------------- launches

template <class Kernel>
cudaError_t allow_shared(Kernel kernel, int64_t bytes) {
  // 48 KiB go without asking, with what the kernel has of its own.
  if (bytes <= 44 << 10) return cudaSuccess;
  if (bytes > kMostShared) return cudaErrorInvalidValue;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, to_int(bytes));
}

#define FASTNAS_TRY(call) \
  if (const cudaError_t error = (call); error != cudaSuccess) return error

template <class T, int kPositions, int kOuts>
cudaError_t launch_forward(const Branches<T>& table, size_t count, const Part& part, int64_t channels,
                           float eps, float2* moments, cudaStream_t stream) {
  const Shape shape{kPositions, kOuts};
  const int64_t columns = shape.columns(part.capacity);
  const int64_t bytes = product_bytes(part.capacity, columns, part.window_floats);
  const dim3 grid(part.tiling.tiles(), static_cast<unsigned>(count), to_int(ceil_div(channels, columns)));
  FASTNAS_TRY(allow_shared(forward_kernel<T, kPositions, kOuts>, bytes));
  FASTNAS_LAUNCH_SHARED((forward_kernel<T, kPositions, kOuts>), grid, kThreads, bytes, stream, table,
                        part.tiling, to_int(shape.lanes(part.capacity)), to_int(part.window_floats), eps,
                        moments);
  return cudaGetLastError();
}

template <class T>
cudaError_t forward_part(const Branches<T>& table, size_t count, const Part& part, int64_t channels,
                         float eps, float2* moments, cudaStream_t stream) {
  const Shape shape = shape_of(part.capacity, channels);
  const auto launch = shape.positions == 4 ? launch_forward<T, 4, 4>
                      : shape.outs == 4    ? launch_forward<T, 8, 4>
                                           : launch_forward<T, 8, 8>;
  return launch(table, count, part, channels, eps, moments, stream);
}

// Forward's parts with their tiles, of the given number of output channels.
template <class Channels>
std::vector<Part> forward_parts(const Params& p, bool dense_only, const Channels& channels_of) {
  std::vector<Part> parts = parts_of(p, dense_only);
  for (Part& part : parts) {
    const int64_t channels = channels_of(p.branches[part.members.front()]);
    choose_tiles(p, part, most_positions(channels), 1, [&](int64_t capacity, int64_t window) {
      return product_bytes(capacity, shape_of(capacity, channels).columns(capacity), window);
    });
  }
  return parts;
}

std::vector<Part> forward_parts(const Params& p) {
  return forward_parts(p, false, [](const Branch& b) { return b.channels; });
}

int64_t moment_numbers(const Params& p, const Part& part) {
  const int64_t members = static_cast<int64_t>(part.members.size());
  return members * p.branches[part.members.front()].channels * part.tiling.tiles();
}

template <class T>
cudaError_t forward(const Params& p, float2* moments, cudaStream_t stream) {
  for (const Part& part : forward_parts(p)) {
    const int64_t channels = p.branches[part.members.front()].channels;
    Branches<T> table{};
    int64_t offset = 0;
    for (size_t i = 0; i < part.members.size(); ++i, offset += channels) {
      table.branch[i] = view_of<T>(p, p.branches[part.members[i]]);
      table.branch[i].offset = offset;
    }
    FASTNAS_TRY(forward_part(table, part.members.size(), part, channels, static_cast<float>(p.eps),
                             p.training ? moments : nullptr, stream));
    if (!p.training) continue;
    const dim3 grid(to_int(channels), static_cast<unsigned>(part.members.size()));
    FASTNAS_LAUNCH((finish_moments_kernel<T>), grid, kFinishThreads, stream, table, part.tiling, moments);
    FASTNAS_TRY(cudaGetLastError());
    moments += moment_numbers(p, part);
  }
  return cudaSuccess;
}

// ---------------------------------------------------------------------------- backward

// Places in the workspace, each aligned.
class Places {
 public:
  explicit Places(void* workspace) : base_(static_cast<char*>(workspace)) {}
  template <class Number>
  Number* take(int64_t count) {
    char* at = base_ + size_;
    size_ += ceil_div(count * static_cast<int64_t>(sizeof(Number)), 256) * 256;
    return reinterpret_cast<Number*>(at);
  }
  int64_t size() const { return size_; }

 private:
  char* base_;
  int64_t size_ = 0;
};

int64_t positions_of(const Params& p, const Branch& b) { return p.images * b.height * b.width; }

bool wants_weights(const Branch& b) { return b.pointwise_grad != nullptr; }

int64_t weight_numbers(const Params& p, const Branch& b) {
  const int64_t inputs = p.sources[b.source].channels, taps = b.kernel * b.kernel;
  return inputs * (b.dense ? taps * b.channels : taps + b.channels);
}

int64_t weights_bytes(int64_t capacity, int64_t window) {
  return 4 * (window + 4 * capacity * kRow + kMaxTaps * kDepth);
}

// A launch of the weights' gradients.
struct WeightsPart : Part {
  int64_t numbers = 0, shares = 0, groups = 0;
};

std::vector<WeightsPart> weights_parts(const Params& p) {
  std::vector<WeightsPart> parts;
  for (const Part& given : parts_of(p)) {
    WeightsPart part{given};
    std::vector<size_t> wanted;
    for (const size_t k : part.members)
      if (wants_weights(p.branches[k])) wanted.push_back(k);
    if (wanted.empty()) continue;
    part.members = wanted;
    const Branch& b = p.branches[part.members.front()];
    part.groups = ceil_div(p.sources[b.source].channels, kDepth) * ceil_div(b.channels, kWeightOuts) *
                  (b.dense ? b.kernel * b.kernel : 1);
    choose_tiles(p, part, 128, part.groups, weights_bytes);
    for (const size_t k : part.members) part.numbers += weight_numbers(p, p.branches[k]);
    const int64_t blocks = part.groups * static_cast<int64_t>(part.members.size());
    part.shares = std::clamp<int64_t>(kWeightBlocks / blocks, 1, part.tiling.tiles());
    parts.push_back(part);
  }
  return parts;
}

// Backward's workspace. `inner`: of each branch the gradient between its convolutions; `outer`: of a dense
// one that of its source.
template <class T>
struct BackwardSpace {
  BackwardSpace(const Params& p, const Part& gather, void* workspace) : places(workspace) {
    for (const Branch& b : p.branches) {
      const int64_t inputs = p.sources[b.source].channels;
      inner.push_back(places.take<T>(positions_of(p, b) * (b.dense ? b.channels : inputs)));
      outer.push_back(b.dense ? places.take<T>(positions_of(p, b) * inputs) : nullptr);
    }
    int64_t most = 0;
    for (const WeightsPart& part : weights_parts(p)) most = std::max(most, part.shares * part.numbers);
    shares = places.take<float>(most);
    int64_t channels = 0;
    for (const Source& s : p.sources) channels += s.norm == nullptr ? 0 : s.channels;
    sums = places.take<float2>(channels * gather.tiling.tiles());
  }
  Places places;
  std::vector<T*> inner, outer;
  float* shares;
  float2* sums;
};

// ---- the sources' gradients

template <class T>
GatherBranch<T> gather_branch(const Branch& b, const T* inner, const T* outer) {
  return {b.dense ? outer : inner,
          static_cast<const float*>(b.depthwise),
          b.dense ? 0 : to_int(b.kernel),
          to_int(b.dilation),
          to_int(b.stride),
          to_int(b.shift),
          to_int(b.height),
          to_int(b.width)};
}

int64_t gather_bytes(int64_t capacity, int64_t window) {
  return 4 * (window + kMaxTaps * kDepth + std::max<int64_t>(capacity * kRow, kGatherThreads / 4 * kDepth));
}

// The tiles of the sources, which are of one size.
Part gather_part(const Params& p) {
  Part part{};
  const Source& s = p.sources.front();
  const auto window = [&](const Tiling& t) {
    int64_t most = 0;
    for (const Branch& b : p.branches) {
      const int64_t span = b.dense || b.kernel == 0 ? 0 : b.dilation * (b.kernel - 1);
      most = std::max(most, window_floats(t, 1, b.dilation, span + 1));
    }
    return most;
  };
  const int64_t blocks = static_cast<int64_t>(p.sources.size()) * ceil_div(s.channels, kDepth);
  choose_tiles(part, p.images, s.height, s.width, 256, blocks, window, gather_bytes);
  return part;
}

template <class T>
cudaError_t launch_gather(const Params& p, const Gather<T>& table, int64_t sources, const Part& part,
                          bool normalised, float2* sums, cudaStream_t stream) {
  int64_t channels = 0;
  for (int64_t s = 0; s < sources; ++s) channels = std::max<int64_t>(channels, table.source[s].view.channels);
  const int64_t bytes = gather_bytes(part.capacity, part.window_floats);
  const dim3 grid(part.tiling.tiles(), to_int(sources), to_int(ceil_div(channels, kDepth)));
  FASTNAS_TRY(allow_shared(gather_kernel<T>, bytes));
  FASTNAS_LAUNCH_SHARED((gather_kernel<T>), grid, kGatherThreads, bytes, stream, table, part.tiling,
                        to_int(part.window_floats), static_cast<float>(p.eps), sums);
  FASTNAS_TRY(cudaGetLastError());
  if (!normalised) return cudaSuccess;
  FASTNAS_LAUNCH((finish_coefficients_kernel<T>), dim3(to_int(channels), to_int(sources)), kFinishThreads,
                 stream, table, part.tiling, p.eps, p.training, sums);
  return cudaGetLastError();
}

template <class T>
cudaError_t gather(const Params& p, const BackwardSpace<T>& space, const Part& part, cudaStream_t stream) {
  Gather<T> table{};
  int64_t sources = 0, branches = 0, offset = 0;
  bool normalised = false;
  for (size_t s = 0; s < p.sources.size(); ++s) {
    const Source& source = p.sources[s];
    const auto reads = [&](const Branch& b) { return b.source == static_cast<int64_t>(s); };
    const int64_t own = std::count_if(p.branches.begin(), p.branches.end(), reads);
    if (own > kGatherBranches) return cudaErrorInvalidValue;  // the binding has refused it
    if (sources == kGatherSources || branches + own > kGatherBranches) {
      FASTNAS_TRY(launch_gather(p, table, sources, part, normalised, space.sums, stream));
      sources = branches = 0;
      normalised = false;
    }
    table.source[sources++] = {view_of<T>(source),
                               static_cast<T*>(source.grad),
                               source.grad_pixel,
                               source.add,
                               four_aligned<T>(source.grad, source.grad_pixel, source.channels),
                               to_int(branches),
                               to_int(branches + own),
                               offset,
                               static_cast<float*>(source.coefficients)};
    if (source.norm != nullptr) normalised = true, offset += source.channels;
    for (size_t k = 0; k < p.branches.size(); ++k)
      if (reads(p.branches[k]))
        table.branch[branches++] = gather_branch(p.branches[k], space.inner[k], space.outer[k]);
  }
  return launch_gather(p, table, sources, part, normalised, space.sums, stream);
}

// ---- the gradients between the convolutions

template <class T, int kPositions, int kOuts>
cudaError_t launch_gradient(const Branches<T>& table, size_t count, const Part& part, int64_t inputs,
                            cudaStream_t stream) {
  const Shape shape{kPositions, kOuts};
  const int64_t columns = shape.columns(part.capacity);
  const int64_t bytes = product_bytes(part.capacity, columns, 0);
  const dim3 grid(part.tiling.tiles(), static_cast<unsigned>(count), to_int(ceil_div(inputs, columns)));
  FASTNAS_TRY(allow_shared(gradient_kernel<T, kPositions, kOuts>, bytes));
  FASTNAS_LAUNCH_SHARED((gradient_kernel<T, kPositions, kOuts>), grid, kThreads, bytes, stream, table,
                        part.tiling, to_int(shape.lanes(part.capacity)));
  return cudaGetLastError();
}

template <class T>
cudaError_t inner_gradients(const Params& p, const BackwardSpace<T>& space, cudaStream_t stream) {
  for (Part& part : parts_of(p)) {
    const int64_t inputs = p.sources[p.branches[part.members.front()].source].channels;
    choose_tiles(p, part, most_positions(inputs), 1, [&](int64_t capacity, int64_t) {
      return product_bytes(capacity, shape_of(capacity, inputs).columns(capacity), 0);
    });
    Branches<T> table{};
    for (size_t i = 0; i < part.members.size(); ++i) {
      table.branch[i] = view_of<T>(p, p.branches[part.members[i]]);
      table.branch[i].gradient = space.inner[part.members[i]];
    }
    const Shape shape = shape_of(part.capacity, inputs);
    const auto launch = shape.positions == 4 ? launch_gradient<T, 4, 4>
                        : shape.outs == 4    ? launch_gradient<T, 8, 4>
                                             : launch_gradient<T, 8, 8>;
    FASTNAS_TRY(launch(table, part.members.size(), part, inputs, stream));
  }
  return cudaSuccess;
}

// A dense convolution's transpose is a dense convolution with its taps in reverse, of the gradient.
template <class T>
cudaError_t dense_gradients(const Params& p, const BackwardSpace<T>& space, cudaStream_t stream) {
  const auto inputs_of = [&](const Branch& b) { return p.sources[b.source].channels; };
  for (const Part& part : forward_parts(p, true, inputs_of)) {
    const int64_t inputs = inputs_of(p.branches[part.members.front()]);
    Branches<T> table{};
    for (size_t i = 0; i < part.members.size(); ++i) {
      const size_t k = part.members[i];
      const Branch& b = p.branches[k];
      BranchView<T>& view = table.branch[i] = view_of<T>(p, b);
      view.source = {space.inner[k],  nullptr,       b.channels,         to_int(b.height),
                     to_int(b.width), view.channels, b.channels % 4 == 0};
      view.raw = space.outer[k], view.raw_pixel = inputs, view.channels = to_int(inputs);
      view.raw_aligned = inputs % 4 == 0;
      view.mean = nullptr, view.relu = false, view.transposed = true;
    }
    FASTNAS_TRY(forward_part<T>(table, part.members.size(), part, inputs, 0.0f, nullptr, stream));
  }
  return cudaSuccess;
}

// ---- the weights' gradients

template <class T>
cudaError_t weight_gradients(const Params& p, const BackwardSpace<T>& space, cudaStream_t stream) {
  for (const WeightsPart& part : weights_parts(p)) {
    Branches<T> table{};
    int64_t offset = 0, most = 0;
    for (size_t i = 0; i < part.members.size(); ++i) {
      const size_t k = part.members[i];
      table.branch[i] = view_of<T>(p, p.branches[k]);
      table.branch[i].gradient = space.inner[k];
      table.branch[i].offset = offset;
      const int64_t own = weight_numbers(p, p.branches[k]);
      offset += own, most = std::max(most, own);
    }
    const int64_t bytes = weights_bytes(part.capacity, part.window_floats);
    const auto members = static_cast<unsigned>(part.members.size());
    const dim3 grid(to_int(part.shares), members, to_int(part.groups));
    FASTNAS_TRY(allow_shared(weights_kernel<T>, bytes));
    FASTNAS_LAUNCH_SHARED((weights_kernel<T>), grid, kThreads, bytes, stream, table, part.tiling,
                          to_int(part.capacity), to_int(part.window_floats), static_cast<float>(p.eps),
                          part.numbers, space.shares);
    FASTNAS_TRY(cudaGetLastError());
    const dim3 sum_grid(to_int(ceil_div(most, kSumThreads)), members);
    FASTNAS_LAUNCH((sum_shares_kernel<T>), sum_grid, kSumThreads, stream, table, to_int(part.shares),
                   part.numbers, space.shares);
    FASTNAS_TRY(cudaGetLastError());
  }
  return cudaSuccess;
}

template <class T>
cudaError_t backward(const Params& p, void* workspace, cudaStream_t stream) {
  const Part part = gather_part(p);
  const BackwardSpace<T> space(p, part, workspace);
  FASTNAS_TRY(inner_gradients(p, space, stream));
  FASTNAS_TRY(weight_gradients(p, space, stream));
  FASTNAS_TRY(dense_gradients(p, space, stream));
  return gather(p, space, part, stream);
}

}  // namespace
}  // namespace fastnas::separable_stage

using fastnas::Dtype;

extern "C" int64_t fastnas_separable_stage_forward_workspace(const fastnas::separable_stage::Params* params) {
  using namespace fastnas::separable_stage;
  int64_t numbers = 0;
  if (params->training)
    for (const Part& part : forward_parts(*params)) numbers += moment_numbers(*params, part);
  return numbers * static_cast<int64_t>(sizeof(float2));
}

extern "C" int64_t fastnas_separable_stage_backward_workspace(
    const fastnas::separable_stage::Params* params) {
  using namespace fastnas::separable_stage;
  const Part part = gather_part(*params);
  return params->dtype == Dtype::float32 ? BackwardSpace<float>(*params, part, nullptr).places.size()
                                         : BackwardSpace<BFloat16>(*params, part, nullptr).places.size();
}

extern "C" cudaError_t fastnas_separable_stage_forward(const fastnas::separable_stage::Params* params,
                                                       void* workspace, cudaStream_t stream) {
  using namespace fastnas::separable_stage;
  float2* moments = static_cast<float2*>(workspace);
  return params->dtype == Dtype::float32 ? forward<float>(*params, moments, stream)
                                         : forward<BFloat16>(*params, moments, stream);
}

extern "C" cudaError_t fastnas_separable_stage_backward(const fastnas::separable_stage::Params* params,
                                                        void* workspace, cudaStream_t stream) {
  using namespace fastnas::separable_stage;
  return params->dtype == Dtype::float32 ? backward<float>(*params, workspace, stream)
                                         : backward<BFloat16>(*params, workspace, stream);
}
