// Checks of ops on flat vectors, which kernels walk element by element and some of which they write in place.
// fastnas/ops/_vectors.py says the same sentences for devices without a kernel of their own.
#pragma once

#include <optional>

#include "memory.h"
#include "stable.h"

namespace fastnas {

// One of an op's vectors, and its name in a sentence.
struct Named {
  const char* name;
  const Tensor& tensor;
};

inline std::string described(const Tensor& tensor) {
  return concat(shape_text(tensor), " of ", dtype_text(tensor), " on ", device_text(tensor));
}

inline void check_contiguous(const char* op, const Named& vector) {
  FASTNAS_CHECK(vector.tensor.is_contiguous(), op, ": ", vector.name,
                " must be contiguous; call contiguous() on it");
  FASTNAS_CHECK(is_stored(vector.tensor), op, ": ", vector.name, " must have memory for its elements ",
                shape_text(vector.tensor), "; its storage was freed or made smaller");
}

// The vector that the others must be like: contiguous, float32 or float64.
inline void check_model(const char* op, const Named& model) {
  const ScalarType dtype = model.tensor.scalar_type();
  FASTNAS_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op, ": ", model.name,
                " must be float32 or float64, got ", dtype_text(model.tensor));
  check_contiguous(op, model);
}

// Contiguous, of the model's shape, dtype and device.
inline void check_like(const char* op, const Named& vector, const Named& model) {
  FASTNAS_CHECK(same_shape(vector.tensor, model.tensor) && same_device(vector.tensor, model.tensor) &&
                    vector.tensor.scalar_type() == model.tensor.scalar_type(),
                op, ": ", vector.name, " must be like ", model.name, ", ", described(model.tensor), "; got ",
                described(vector.tensor));
  check_contiguous(op, vector);
}

// One number of `dtype` on the model's device.
inline void check_scalar(const char* op, const Named& scalar, ScalarType dtype, const char* dtype_name,
                         const Named& model) {
  FASTNAS_CHECK(scalar.tensor.dim() == 0 && scalar.tensor.scalar_type() == dtype &&
                    same_device(scalar.tensor, model.tensor),
                op, ": ", scalar.name, " must be () of ", dtype_name, " on ", device_text(model.tensor),
                "; got ", described(scalar.tensor));
  check_contiguous(op, scalar);
}

// Where a number is that may be given as a tensor, one number of float64 on the model's device; null: it is
// not.
inline const double* number_at(const char* op, const char* name, const std::optional<Tensor>& number,
                               const Named& model) {
  if (!number) return nullptr;
  check_scalar(op, {name, *number}, ScalarType::Double, "float64", model);
  return static_cast<const double*>(number->data_ptr());
}

// What is written and something else: apart, or, of a vector of its size, in one and the same place where
// that is allowed (each element is read before it is written).
inline void check_apart(const char* op, const Named& written, const Named& other, bool may_be_same) {
  const Region a = region_of(written.name, written.tensor), b = region_of(other.name, other.tensor);
  FASTNAS_CHECK(!overlap(a, b) || (may_be_same && a.begin == b.begin && a.bytes == b.bytes), op, ": ",
                written.name, " and ", other.name, " must not overlap in memory");
}

// A number that is read meanwhile, if it is given.
inline void check_apart(const char* op, const Named& written, const char* name,
                        const std::optional<Tensor>& number) {
  if (number) check_apart(op, written, {name, *number}, false);
}

}  // namespace fastnas
