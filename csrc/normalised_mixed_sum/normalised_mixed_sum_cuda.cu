// The normalised mixed sum's launchers: raw pointers, sizes, the stream last. They neither allocate nor
// synchronise.
#include <algorithm>

#include "normalised_mixed_sum/normalised_mixed_sum_kernel.cuh"

namespace fastnas::normalised_mixed_sum {
namespace {

using cuda::BFloat16;
using cuda::is_packed;
using cuda::kPack;

template <class T>
struct Type {
  using type = T;
};

// Whether all images of a sum can be accessed in packs.
bool is_packed(const Params& p) {
  const int64_t element = size_of(p.dtype);
  return p.channels * element % 16 == 0 && is_packed(p.out, p.out_pixel, element) &&
         std::all_of(p.branches.begin(), p.branches.end(), [&](const Branch& b) {
           return is_packed(b.x, b.pixel, element) && is_packed(b.passed, b.passed_pixel, element);
         });
}

bool all_packed(const std::vector<Params>& sums) {
  return std::all_of(sums.begin(), sums.end(), [](const Params& p) { return is_packed(p); });
}

bool any_rectified(const std::vector<Params>& sums) {
  return std::any_of(sums.begin(), sums.end(), [](const Params& p) { return p.is_rectified(); });
}

// ---------------------------------------------------------------------------- forward

int64_t tile_of(int64_t channels) { return std::min<int64_t>(channels, kTile); }

// Branches of one sum that a launch takes.
template <bool R>
int64_t summands_of(int64_t channels) {
  return std::min<int64_t>(kSummands<R>, kFactors<R> / std::max<int64_t>(1, tile_of(channels)));
}

// The table of the next launch. Sums are entered in order, and launched when the table is full.
template <class T, int W, bool R>
class Forward {
 public:
  Forward(const Params& model, float* running, cudaStream_t stream) : stream_(stream) {
    table_.channels = static_cast<int>(model.channels);
    table_.tile = static_cast<int>(tile_of(model.channels));
    table_.pixels = model.pixels;
    table_.running = running;
  }

  void enter(const Params& p) {
    const int64_t branches = static_cast<int64_t>(p.branches.size());
    const int64_t most = summands_of<R>(p.channels);
    for (int64_t first = 0; first == 0 || first < branches; first += most) {
      const int64_t count = std::min(most, branches - first);
      // A sum that needs several launches has its own: they follow each other.
      if (table_.count == kSums || used_ + count > kSummands<R> || branches > most) launch();
      table_.sums[table_.count++] = {p.out,
                                     p.out_pixel,
                                     used_,
                                     static_cast<int>(count),
                                     static_cast<float>(p.eps),
                                     p.add,
                                     first == 0,
                                     first + count == branches};
      for (int64_t k = first; k < first + count; ++k) {
        const Branch& b = p.branches[k];
        Summand<R>& summand = table_.summands[used_++];
        summand = {b.x, b.pixel, static_cast<const float*>(b.norm), static_cast<const float*>(b.weight)};
        if constexpr (R) summand.affine = static_cast<const float*>(b.affine);
      }
    }
    if (branches > most) launch();
  }

  void launch() {
    if (table_.count == 0) return;
    int widest = 0;
    for (int i = 0; i < table_.count; ++i) widest = std::max(widest, table_.sums[i].count);
    const int64_t tiles = (table_.channels + table_.tile - 1) / table_.tile;
    const int64_t packs = table_.pixels * (table_.tile / W);
    // Some 1000 blocks where there is work for them; beyond that threads take several packs, so that the
    // factors are made less often.
    table_.steps =
        static_cast<int>(std::clamp<int64_t>(packs * tiles * table_.count / (1024 * kThreads), 1, 8));
    const int64_t block = static_cast<int64_t>(kThreads) * table_.steps;
    const dim3 blocks(static_cast<unsigned>((packs + block - 1) / block * table_.count),
                      static_cast<unsigned>(tiles));
    const size_t bytes = kPerFactor<R> * sizeof(float) * static_cast<size_t>(widest) * table_.tile;
    if constexpr (R)
      FASTNAS_LAUNCH_SHARED((rectified_forward_kernel<T, W>), blocks, kThreads, bytes, stream_, table_);
    else
      FASTNAS_LAUNCH_SHARED((forward_kernel<T, W>), blocks, kThreads, bytes, stream_, table_);
    table_.count = used_ = 0;
  }

 private:
  SumTable<R> table_{};
  int used_ = 0;
  cudaStream_t stream_;
};

template <class T, int W, bool R>
cudaError_t forward(const std::vector<Params>& sums, void* workspace, cudaStream_t stream) {
  if (sums.front().pixels == 0 || sums.front().channels == 0) return cudaSuccess;
  Forward<T, W, R> launches(sums.front(), static_cast<float*>(workspace), stream);
  for (const Params& p : sums) launches.enter(p);
  launches.launch();
  return cudaGetLastError();
}

// ---------------------------------------------------------------------------- backward

// Pixels whose products are summed by one block: some 16 KiB of each image, more where that would be very
// many blocks, but never so many that a float's digits do not do. A function of the sizes alone, so that the
// order of every sum is.
int64_t chunk_pixels(const Params& p) {
  const int64_t row = std::max<int64_t>(1, p.channels * size_of(p.dtype));
  const auto pixels = [&](int64_t bytes) { return std::max<int64_t>(1, bytes / row); };
  return std::min(std::max(pixels(16 << 10), (p.pixels + 127) / 128), pixels(256 << 10));
}

int64_t chunk_count(const Params& p) { return (p.pixels + chunk_pixels(p) - 1) / chunk_pixels(p); }

// Rows of the workspace: of each sum its branches' products and the sum of its gradient, or of each branch's
// own.
int64_t row_count(const Params& p, bool rectified) {
  const int64_t branches = static_cast<int64_t>(p.branches.size());
  return rectified ? 2 * branches : branches + 1;
}

int64_t row_count(const std::vector<Params>& sums) {
  const bool rectified = any_rectified(sums);
  int64_t rows = 0;
  for (const Params& p : sums) rows += row_count(p, rectified);
  return rows;
}

template <class T, int W, bool R>
void sum_products(const std::vector<Params>& sums, float* shares, cudaStream_t stream) {
  const Params& model = sums.front();
  const int64_t packs = model.channels / W;
  JobTable<R> table{};
  table.chunks = static_cast<int>(chunk_count(model));
  table.tile = static_cast<int>(std::min<int64_t>(packs, kThreads));
  table.channels = static_cast<int>(model.channels);
  table.pixels = model.pixels;
  table.chunk_pixels = chunk_pixels(model);
  table.shares = shares;
  const auto launch = [&] {
    if (table.count == 0) return;
    const dim3 blocks(static_cast<unsigned>(table.count) * table.chunks,
                      static_cast<unsigned>((packs + table.tile - 1) / table.tile));
    if constexpr (R)
      FASTNAS_LAUNCH((rectified_products_kernel<T, W>), blocks, kThreads, stream, table);
    else
      FASTNAS_LAUNCH((products_kernel<T, W>), blocks, kThreads, stream, table);
    table.count = 0;
  };
  int64_t row = 0;
  for (const Params& p : sums) {
    const int64_t branches = static_cast<int64_t>(p.branches.size());
    for (int64_t first = 0; first == 0 || first < branches; first += kProducts<R>) {
      if (table.count == kJobs) launch();
      Job<R>& job = table.jobs[table.count++];
      job = {p.out,
             p.out_pixel,
             row + first,
             R ? row + branches + first : (first == 0 ? row + branches : -1),
             static_cast<int>(std::min<int64_t>(kProducts<R>, branches - first)),
             static_cast<float>(p.eps),
             {}};
      for (int j = 0; j < job.count; ++j) {
        const Branch& b = p.branches[first + j];
        job.products[j] = {b.x, b.pixel, static_cast<const float*>(b.norm)};
        if constexpr (R) {
          job.products[j].affine = static_cast<const float*>(b.affine);
          job.products[j].passed = b.passed;
          job.products[j].passed_pixel = b.passed_pixel;
        }
      }
    }
    row += row_count(p, R);
  }
  launch();
}

template <bool R>
void finish(const std::vector<Params>& sums, const float* shares, cudaStream_t stream) {
  const Params& model = sums.front();
  FinishTable<R> table{};
  table.chunks = static_cast<int>(chunk_count(model));
  table.channels = static_cast<int>(model.channels);
  table.lanes = 1;
  while (table.lanes < model.channels && table.lanes < 64) table.lanes *= 2;
  table.pixels = model.pixels;
  table.shares = shares;
  int count = 0;
  const auto launch = [&] {
    if (count > 0) FASTNAS_LAUNCH(finish_kernel<R>, static_cast<unsigned>(count), kThreads, stream, table);
    count = 0;
  };
  int64_t row = 0;
  for (const Params& p : sums) {
    const int64_t branches = static_cast<int64_t>(p.branches.size());
    for (int64_t k = 0; k < branches; ++k) {
      const Branch& b = p.branches[k];
      if (b.coefficients == nullptr && b.weight_grad == nullptr && b.affine_grad == nullptr) continue;
      if (count == kFinishes<R>) launch();
      Finish<R>& to = table.branches[count++];
      static_cast<Finish<false>&>(to) = {static_cast<const float*>(b.norm),
                                         static_cast<const float*>(b.weight),
                                         static_cast<float*>(b.coefficients),
                                         static_cast<float*>(b.weight_grad),
                                         row + k,
                                         row + branches + (R ? k : 0),
                                         p.eps,
                                         p.training};
      if constexpr (R) {
        to.affine = static_cast<const float*>(b.affine);
        to.affine_grad = static_cast<float*>(b.affine_grad);
      }
    }
    row += row_count(p, R);
  }
  launch();
}

template <class T, int W, bool R>
cudaError_t backward(const std::vector<Params>& sums, void* workspace, cudaStream_t stream) {
  float* shares = static_cast<float*>(workspace);
  if (sums.front().pixels > 0 && sums.front().channels > 0) sum_products<T, W, R>(sums, shares, stream);
  finish<R>(sums, shares, stream);
  return cudaGetLastError();
}

}  // namespace

int64_t forward_workspace(const std::vector<Params>& sums) {
  const Params& model = sums.front();
  const int64_t most =
      any_rectified(sums) ? summands_of<true>(model.channels) : summands_of<false>(model.channels);
  const bool split = std::any_of(sums.begin(), sums.end(), [&](const Params& p) {
    return static_cast<int64_t>(p.branches.size()) > most;
  });
  return split ? 4 * model.pixels * model.channels : 0;
}

int64_t backward_workspace(const std::vector<Params>& sums) {
  return 4 * row_count(sums) * chunk_count(sums.front()) * sums.front().channels;
}

}  // namespace fastnas::normalised_mixed_sum

using fastnas::Dtype;
using fastnas::cuda::BFloat16;
using fastnas::cuda::kPack;
using fastnas::normalised_mixed_sum::Params;

namespace fastnas::normalised_mixed_sum {
namespace {

// run(element type, width of a pack, whether branches are rectified) for what the sums are.
template <class Run>
cudaError_t with_kind(const std::vector<Params>& sums, const Run& run) {
  const auto with_width = [&](auto type, auto rectified) {
    using T = typename decltype(type)::type;
    if (all_packed(sums)) return run(type, std::integral_constant<int, kPack<T>>{}, rectified);
    return run(type, std::integral_constant<int, 1>{}, rectified);
  };
  const auto with_type = [&](auto rectified) {
    if (sums.front().dtype == Dtype::float32) return with_width(Type<float>{}, rectified);
    return with_width(Type<BFloat16>{}, rectified);
  };
  return any_rectified(sums) ? with_type(std::true_type{}) : with_type(std::false_type{});
}

}  // namespace
}  // namespace fastnas::normalised_mixed_sum

extern "C" cudaError_t fastnas_normalised_mixed_sum_forward(const std::vector<Params>* sums, void* workspace,
                                                            cudaStream_t stream) {
  using namespace fastnas::normalised_mixed_sum;
  return with_kind(*sums, [&](auto type, auto width, auto rectified) {
    using T = typename decltype(type)::type;
    return forward<T, decltype(width)::value, decltype(rectified)::value>(*sums, workspace, stream);
  });
}

extern "C" cudaError_t fastnas_normalised_mixed_sum_backward(const std::vector<Params>* sums, void* workspace,
                                                             cudaStream_t stream) {
  using namespace fastnas::normalised_mixed_sum;
  return with_kind(*sums, [&](auto type, auto width, auto rectified) {
    using T = typename decltype(type)::type;
    return backward<T, decltype(width)::value, decltype(rectified)::value>(*sums, workspace, stream);
  });
}
