// The branch table of the separable stage: a row of numbers a branch, as fastnas.ops.separable_stage.Branch
// writes it.
#pragma once

#include <vector>

#include "separable_stage/separable_stage.h"
#include "stable.h"

namespace fastnas::separable_stage {

struct Row {
  int64_t source, kernel, dilation, stride, shift, depthwise, pointwise, channels, out, out_channel, norm,
      grad;
};
inline constexpr size_t kColumns = sizeof(Row) / sizeof(int64_t);
inline constexpr int64_t kDense = -1;  // in place of the depthwise weights' offset

// `op` begins the sentences.
std::vector<Row> read_table(const std::vector<int64_t>& table, const char* op);

// Raises unless the branch can read a source of `inputs` channels, with the given numbers of sources, weights
// and norms.
void check_row(const Row& row, int64_t sources, int64_t inputs, int64_t weights, int64_t norms,
               const char* op);

// Channels [begin, begin + size) of something that is numbered, or numbers of a flat vector.
struct Span {
  int64_t of, begin, size;
};

// Whether no two spans overlap.
bool are_apart(std::vector<Span> spans);

// The spans of a branch's weights, of a source of `inputs` channels, for a row that fits.
void add_weights(const Row& row, int64_t inputs, std::vector<Span>& spans);

// Geometry and weights of a branch of a source of that size.
Branch branch_of(const Row& row, int64_t height, int64_t width, const char* weights, int64_t element);

// The row as the table writes it down, of a dtype's element size: where its weights' gradients begin.
void want_weights_grad(const Row& row, char* weights_grad, int64_t element, Branch& branch);

}  // namespace fastnas::separable_stage
