"""The Euclidean norm of a flat vector, which stays on its device."""

import torch
from torch import Tensor

from fastnas.ops._vectors import call, check_tensors, check_vectors, run_elsewhere


def vector_norm(vector: Tensor) -> Tensor:
    """The Euclidean norm of a flat vector, accumulated in float64, in one pass.

    |x| = sqrt(sum_i x_i^2). The square of a float32 number is exact in float64 and can neither overflow nor
    underflow there. Summed in one fixed order: the same bits in every run and for every number of threads.
    Not differentiable.

    Args:
        vector: shape (P,), float32 or float64, contiguous.

    Returns:
        |x|, shape (), float64 whatever the vector's dtype, on its device; nothing waits for it.

    Raises:
        FastnasError: the vector is not contiguous or of another dtype.

    Example:
        >>> vector_norm(torch.tensor([3e-30, 4e-30]))
        tensor(5.0000e-30, dtype=torch.float64)
    """
    check_tensors("vector_norm", vector=vector)
    return call("vector_norm", vector)


def _vector_norm_ref(vector: Tensor) -> Tensor:
    """``vector_norm`` in plain PyTorch."""
    return torch.linalg.vector_norm(vector, dtype=torch.float64)


@torch.library.register_fake("fastnas::vector_norm")
def _vector_norm_fake(vector: Tensor) -> Tensor:
    check_vectors("vector_norm", vector=vector)
    return vector.new_empty((), dtype=torch.float64)


run_elsewhere("vector_norm", _vector_norm_fake, _vector_norm_ref)
