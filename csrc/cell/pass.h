// One pass through a cell, on the ops of the other folders, and the tensors that it makes. Groups of edges
// run in the order of the states that they read, in backward in reverse: when a group's turn comes, all nodes
// that it feeds have their gradients. Between the calls for a group nothing but its own tensors is touched.
#pragma once

#include <vector>

#include "cell/plan.h"
#include "images.h"
#include "normalised_mixed_sum/run.h"
#include "separable_stage/run.h"
#include "shared_pooling/run.h"

namespace fastnas::cell {

inline constexpr const char* kOp = "cell: ";

// A tensor (N, height, width, channels) of its own, and how the ops see it.
struct Batch {
  Tensor tensor;
  Images images;
};

inline std::vector<Images> images_of_all(const std::vector<Batch>& batches, size_t count) {
  std::vector<Images> images;
  for (size_t i = 0; i < count; ++i) images.push_back(batches[i].images);
  return images;
}

struct Arguments {
  const std::vector<Tensor>& inputs;
  const Tensor &mixing, &weights, &statistics;
  double eps;
  bool training;
};

struct Gradients {  // empty if not wanted
  Tensor mixing, weights;
  std::vector<Tensor> inputs;
};

class Pass {
 public:
  Pass(const Plan& plan, const Arguments& arguments);

  // The output, (N, channels len(output), height, width), channels last. Writes the statistics in training.
  Tensor forward();
  // What backward needs beside inputs and output: raw outputs of the preprocessing, the nodes that are not in
  // the output, and each group's raw outputs that enter a node.
  std::vector<Tensor> kept() const;
  // The inverse of `kept`; without anything kept it is computed again.
  void restore(const Tensor& out, const std::vector<Tensor>& kept);
  // After restore. `grad` is the output's; it is written over. Where neither the weights' gradients nor an
  // input's are wanted, edges that read the input are left out.
  Gradients backward(const Tensor& grad, bool weights_wanted, const std::vector<bool>& inputs_wanted);

 private:
  using Row = separable_stage::Row;

  void check_branches() const;
  bool is_own(int64_t state) const;
  // Whether backward goes on to what makes a state.
  bool passes(int64_t state) const {
    return weights_wanted_ || !plan_.is_input(state) || inputs_wanted_[plan_.input_of[state]];
  }
  bool has_pixels() const { return count_ > 0 && height_ > 0 && width_ > 0; }
  Batch batch(const Tensor& rows, int64_t height, int64_t width) const;
  Batch batch(int64_t height, int64_t width) const;
  Batch node() const { return batch(height_, width_); }
  Images slice(const Images& images, int64_t first_channel) const;
  Images input_images(size_t i) const;
  void reserve(std::vector<Batch>& scratch, size_t count) const;

  char* statistic(int64_t norm) const;
  char* coefficient(int64_t norm) const;
  const char* weight(int64_t index) const;
  const char* affine(int64_t norm) const;

  separable_stage::Params stage(const std::vector<Images>& sources, const std::vector<int64_t>& norms,
                                const std::vector<Row>& rows, const std::vector<Images>& outs,
                                bool training) const;
  void stage_backward(const std::vector<Images>& grads, const std::vector<Images>& raws,
                      const std::vector<Images>& sources, const std::vector<int64_t>& norms,
                      const std::vector<Row>& rows, const std::vector<Images>& source_grads, bool add) const;
  normalised_mixed_sum::Params sum(const std::vector<Images>& branches, const std::vector<Term>& terms,
                                   const Images& out, bool add) const;
  normalised_mixed_sum::Params sum_backward(const Images& grad, const std::vector<Images>& branches,
                                            const std::vector<Term>& terms,
                                            const std::vector<Images>& passed) const;
  shared_pooling::Params pooling(const Group& group) const;

  void run(const Images& out, bool training, bool known);
  void preprocess(size_t input, bool training);
  void normalise(size_t input);
  std::vector<Images> raws_of(const Input& input) const;
  template <class Make>
  void place_nodes(const Images& out, const Make& make);
  void read(size_t group, bool training);
  void pool(const Group& group, bool statistics);
  std::vector<Images> firsts_of(size_t group) const;
  std::vector<Images> branches_of(size_t group, const std::vector<Images>& firsts,
                                  const std::vector<Term>& terms) const;

  void begin_grad(int64_t state);
  void read_backward(size_t group);
  void pool_backward(const Group& group);
  Tensor preprocess_backward(size_t input);
  void check_weights_apart() const;
  void bias_gradients() const;

  const Plan& plan_;
  const Arguments& given_;
  const Tensor& model_;  // of images
  const Dtype dtype_;
  const int64_t element_, number_;  // bytes of an image's element, and of weights' and statistics'
  int64_t count_, height_, width_;  // of the nodes

  std::vector<Batch> projected_, own_;  // kept, in order
  std::vector<Batch> input_states_;
  std::vector<Images> input_raws_;                  // of each input state's preprocessing, where there is one
  std::vector<std::vector<Batch>> ends_, seconds_;  // kept, of each group
  std::vector<Batch> middles_, middle_grads_;       // of the group that runs
  std::vector<Batch> passed_;  // gradients that a ReLU lets through, of its rectified terms
  std::vector<Batch> pooled_;  // average, maximum of the state that is read
  std::vector<Images> states_;

  Tensor coefficients_, mixing_grad_, weights_grad_;
  bool weights_wanted_ = false;
  std::vector<bool> inputs_wanted_;
  std::vector<Batch> own_grads_;
  std::vector<Images> grads_;  // of the states
  std::vector<bool> begun_;    // whether there is something in them yet
};

}  // namespace fastnas::cell
