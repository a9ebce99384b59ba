// Which branches a launch takes together, and how their outputs are cut into tiles: functions of sizes alone.
#pragma once

#include <algorithm>
#include <vector>

#include "separable_stage/windows.cuh"

namespace fastnas::separable_stage {

// Bytes of shared memory that a block takes at most where a smaller tile will do, so that three share a
// multiprocessor of an H100, and the most that every GPU gives one.
inline constexpr int64_t kGoodShared = 72 << 10;
inline constexpr int64_t kMostShared = 96 << 10;  // 99 KiB less what a kernel has of its own

// Blocks that a launch should have: two for each multiprocessor of an H100. A number, not a question to the
// device: the order of every sum depends on sizes alone. Tests on the host ask for few, so that small images
// have large tiles.
#ifdef FASTNAS_WANTED_BLOCKS
inline constexpr int64_t kWantedBlocks = FASTNAS_WANTED_BLOCKS;
#else
inline constexpr int64_t kWantedBlocks = 264;
#endif

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int to_int(int64_t number) { return static_cast<int>(number); }

// Branches of one launch: alike in everything that a grid depends on.
struct Part {
  std::vector<size_t> members;
  Tiling tiling;
  int64_t capacity;       // positions that a tile's memory holds
  int64_t window_floats;  // of the largest window
};

inline bool alike(const Params& p, const Branch& a, const Branch& b) {
  return p.sources[a.source].channels == p.sources[b.source].channels && a.height == b.height &&
         a.width == b.width && a.channels == b.channels && a.dense == b.dense &&
         a.kernel * a.dense == b.kernel * b.dense;
}

inline std::vector<Part> parts_of(const Params& p, bool dense_only = false) {
  std::vector<Part> parts;
  for (size_t k = 0; k < p.branches.size(); ++k) {
    const Branch& b = p.branches[k];
    if (dense_only && !b.dense) continue;
    const auto fits = [&](const Part& part) {
      return part.members.size() < kBranches && alike(p, p.branches[part.members.front()], b);
    };
    auto part = std::find_if(parts.begin(), parts.end(), fits);
    if (part == parts.end()) part = parts.insert(parts.end(), Part{});
    part->members.push_back(k);
  }
  return parts;
}

inline Tiling tiling_of(int64_t images, int64_t height, int64_t width, int64_t limit, int64_t most_images) {
  Tiling t{to_int(images), to_int(height), to_int(width), 1, 0, 0, 0, 0, 0};
  if (height * width <= limit) {
    t.tile_height = t.height, t.tile_width = t.width;
    t.tile_images = to_int(std::min({images, limit / (height * width), most_images}));
  } else {
    t.tile_width = std::min(t.width, 16);
    t.tile_height = std::min(t.height, to_int(limit) / t.tile_width);
  }
  t.tiles_down = to_int(ceil_div(t.height, t.tile_height));
  t.tiles_across = to_int(ceil_div(t.width, t.tile_width));
  t.tile_groups = to_int(ceil_div(images, t.tile_images));
  return t;
}

// Floats of a window of so many positions a side beyond a tile's own.
inline int64_t window_floats(const Tiling& t, int64_t stride, int64_t dilation, int64_t beyond) {
  const int64_t rows = (t.tile_height - 1) * stride + 1 + beyond;
  const int pitch = pitch_of(to_int((t.tile_width - 1) * stride + 1 + beyond));
  return t.tile_images * rows * pitch + window_slack(to_int(stride), to_int(dilation));
}

inline int64_t window_floats(const Params& p, const Part& part, const Tiling& t) {
  int64_t most = 0;
  for (const size_t k : part.members) {
    const Branch& b = p.branches[k];
    const int64_t pad = std::max(b.dilation * (b.kernel / 2), b.shift);
    most = std::max(most, window_floats(t, b.stride, b.dilation, 2 * pad));
  }
  return most;
}

// The largest tiles over images of that size, of at most `limit` positions, that are not mostly empty and
// leave room for other blocks. window(tiling): floats of the largest window; bytes(capacity, window): of a
// block's shared memory.
template <class WindowFloats, class Bytes>
void choose_tiles(Part& part, int64_t images, int64_t height, int64_t width, int64_t limit, int64_t blocks,
                  const WindowFloats& window, const Bytes& bytes) {
  part.capacity = limit;
  for (int64_t most_images = images;;) {
    part.tiling = tiling_of(images, height, width, part.capacity, most_images);
    part.window_floats = window(part.tiling);
    const bool empty = 2 * part.tiling.positions() <= part.capacity;
    const bool few = part.tiling.tiles() * blocks < kWantedBlocks;
    const bool large = bytes(part.capacity, part.window_floats) > kGoodShared;
    if (part.capacity > kLeastPositions && (empty || few || large))
      part.capacity /= 2;
    else if (large && part.tiling.tile_images > 1)
      most_images = part.tiling.tile_images - 1;
    else
      return;
  }
}

template <class Bytes>
void choose_tiles(const Params& p, Part& part, int64_t limit, int64_t groups, const Bytes& bytes) {
  const Branch& b = p.branches[part.members.front()];
  const auto window = [&](const Tiling& t) { return window_floats(p, part, t); };
  const int64_t blocks = groups * static_cast<int64_t>(part.members.size());
  choose_tiles(part, p.images, b.height, b.width, limit, blocks, window, bytes);
}

// How a product of `capacity` positions and `outs` columns is shared among the threads.
struct Shape {
  int64_t positions, outs;  // of a thread
  int64_t lanes(int64_t capacity) const { return capacity / positions; }
  int64_t columns(int64_t capacity) const { return kThreads / lanes(capacity) * outs; }
};

inline Shape shape_of(int64_t capacity, int64_t outs) {
  for (const Shape shape : {Shape{4, 4}, Shape{8, 4}})
    if (shape.columns(capacity) >= std::min<int64_t>(outs, 16) && shape.columns(capacity) >= outs)
      return shape;
  return {8, 8};
}

inline int64_t most_positions(int64_t outs) { return outs <= 32 ? 256 : 128; }

inline int64_t product_bytes(int64_t capacity, int64_t columns, int64_t window) {
  return 4 * (window + capacity * kRow + kMaxTaps * kDepth + kDepth * columns);
}

}  // namespace fastnas::separable_stage
