"""How near one vector is to another: what an audit says of an estimate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastnas.bilevel import _arguments as check


@dataclass(frozen=True)
class Agreement:
    """An estimate a beside a reference b.

    Attributes:
        cosine: <a, b> / (|a| |b|): whether it points the right way; NaN if one of them is 0.
        relative_error: |a - b| / |b|: whether its length is right, too; NaN or infinity if b is 0.
    """

    cosine: float
    relative_error: float


def agreement(estimate: Tensor, reference: Tensor) -> Agreement:
    """Cosine and relative error of ``estimate`` to ``reference``, in float64; waits for the device.

    Args:
        estimate, reference: shape (n,), of one dtype and device.

    Raises:
        FastnasError: the two are not alike.

    Example:
        >>> agreement(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.0]))
        Agreement(cosine=0.7071067811865475, relative_error=0.7071067811865476)
    """
    check.like("agreement", "estimate", estimate, "reference", reference)
    a, b = estimate.double(), reference.double()
    lengths = torch.linalg.vector_norm(torch.stack([a, b, a - b]), dim=1)
    inner, (long, wide, apart) = torch.dot(a, b).item(), lengths.tolist()
    cosine = inner / (long * wide) if long * wide else float("nan")
    error = apart / wide if wide else (float("inf") if apart else float("nan"))
    return Agreement(cosine, error)
