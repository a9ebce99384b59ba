// What a fused cell runs: groups of all edges that read one state, and which call of which op does which
// branch. fastnas/supernet/cell_plan.py says what the parts mean and writes a plan down as numbers.
#pragma once

#include <cstdint>
#include <vector>

#include "separable_stage/table.h"

namespace fastnas::cell {

inline constexpr int64_t kNone = -1;                        // no norm, no weight
inline constexpr int64_t kMostChannels = int64_t(1) << 20;  // of a state

// Where a summand of a node comes from.
enum class Call : int64_t { state, first, second, average, maximum };

struct Term {
  Call call;
  int64_t index, norm, weight;
};

// An input of the cell, and the states that are made of it.
struct Input {
  int64_t first_state;
  std::vector<int64_t> norms;              // of each state
  std::vector<separable_stage::Row> rows;  // none: one state, the input as it is
  bool has_node_size = false;  // of those as they are: edges out of it have stride 1 where others have 2

  int64_t states() const { return static_cast<int64_t>(norms.size()); }
};

// What an edge wants of the pooling: norms and weights, or kNone.
struct PoolingRow {
  int64_t average_norm, average_weight, maximum_norm, maximum_weight, skip_weight;
};

struct Pooling {
  bool average, maximum;
  std::vector<int64_t> average_norms, maximum_norms;
  std::vector<PoolingRow> rows;  // of each target of the group
};

struct Group {
  int64_t state, stride;
  int64_t outputs;  // of `first`
  std::vector<int64_t> targets;
  std::vector<separable_stage::Row> first, second;
  std::vector<int64_t> middle, middle_norms;  // outputs of `first` that `second` reads
  std::vector<separable_stage::Row> middles;  // the rows of `first` that make them, outputs counted anew
  std::vector<int64_t> ends;                  // the other outputs
  std::vector<std::vector<Term>> terms;       // of each target
  int64_t rectified;                          // how many of them have an affine norm
  Pooling pooling;
};

// A convolution's bias: the norm behind it, which takes it away again, where it lies, and the node that it
// enters.
struct Bias {
  int64_t norm, offset, target;
};

struct Plan {
  int64_t channels, stride, states, norms, weights, mixing;
  // Of each norm the offset of its scale, which its shift follows; a ReLU is behind it. kNone: it has none.
  std::vector<int64_t> affine;
  std::vector<Input> inputs;
  std::vector<int64_t> input_of;  // of each input state
  std::vector<int64_t> output;    // states that the cell puts side by side
  std::vector<int64_t> empty;     // nodes that no branch enters
  std::vector<Bias> biases;
  std::vector<Group> groups;

  // Where a state begins in the output, in channels; kNone: it is not there.
  int64_t slot(int64_t state) const;
  // Of the edges out of a state.
  int64_t stride_from(int64_t state) const;
  bool is_input(int64_t state) const { return state < static_cast<int64_t>(input_of.size()); }
  bool is_rectified(int64_t norm) const { return norm != kNone && affine[norm] != kNone; }
};

// Raises std::invalid_argument unless the parts fit each other. Part of read_plan.
void check_consistent(const Plan& plan);

// Raises std::invalid_argument where numbers are missing or name what is not there.
Plan read_plan(const int64_t* numbers, int64_t count);

}  // namespace fastnas::cell
