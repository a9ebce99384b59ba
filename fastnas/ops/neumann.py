"""One step of a Neumann series for (inverse Hessian) v, with the norm that the next step's eps needs."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnas.ops._vectors import (
    call,
    check_scalar,
    check_tensors,
    check_vectors,
    number,
    number_or_tensor,
    run_elsewhere,
    run_triton,
)
from fastnas.ops.vector_norm import _vector_norm_ref


def neumann_step_(
    v: Tensor,
    series: Tensor,
    ahead: Tensor,
    behind: Tensor,
    norm: Tensor,
    radius: float,
    gamma: float | Tensor,
) -> Tensor:
    """One step of the Neumann series from a central difference, in one pass.

        v      <- v - gamma H v,    H v ~ (ahead - behind) / (2 eps),    eps = radius / |v|
        series <- series + v

    (Zhang et al. 2021, eq. 9.) The difference, the two updates and the norm of the new v, accumulated in float64:
    nothing of the size of v is made. The same bits in every run and for every number of threads. v = 0 stays 0; a v
    that is not finite makes NaN, as with ``difference_``. On CUDA it runs in Triton, without Triton in plain PyTorch.

    Args:
        v: shape (P,), float32 or float64, contiguous; written.
        series: the sum so far, like v; written.
        ahead: the gradient at w + eps v, like v; left alone.
        behind: the gradient at w - eps v, like v; left alone.
        norm: |v|, shape (), float64, on v's device; left alone.
        radius: as of ``perturb_``.
        gamma: >= 0; or shape (), float64, on v's device: read there when the step is made, so that a captured CUDA
            graph follows its changes. Nothing checks its value then.

    Returns:
        |v| of the new v, shape (), float64, on its device; nothing waits for it.

    Raises:
        FastnasError: on arguments that do not fit together; nothing is written then.

    Example:
        >>> v = torch.tensor([3.0, 4.0])  # H = 2: the gradients are 2 (w + eps v) and 2 (w - eps v), eps = 1/10, w = 0
        >>> series, norm = v.clone(), torch.tensor(5.0).double()
        >>> neumann_step_(v, series, 0.2 * v, -0.2 * v, norm, radius=0.5, gamma=0.25)
        tensor(2.5000, dtype=torch.float64)
        >>> v, series
        (tensor([1.5000, 2.0000]), tensor([4.5000, 6.0000]))
    """
    check_tensors("neumann_step_", v=v, series=series, ahead=ahead, behind=behind, norm=norm)
    radius = number("neumann_step_", "radius", radius, above=True)
    given, rate = number_or_tensor("neumann_step_", "gamma", gamma)
    return call("neumann_step_", v, series, ahead, behind, norm, radius, given, rate, written=[v, series])


def _neumann_step_ref(
    v: Tensor,
    series: Tensor,
    ahead: Tensor,
    behind: Tensor,
    norm: Tensor,
    radius: float,
    gamma: float,
    rate: Tensor | None = None,
) -> Tensor:
    """``neumann_step_`` in plain PyTorch."""
    v.sub_((ahead - behind) * ((gamma if rate is None else rate) * (norm / (2 * radius))))
    series.add_(v)
    return _vector_norm_ref(v)


@torch.library.register_fake("fastnas::neumann_step_")
def _neumann_step_fake(
    v: Tensor,
    series: Tensor,
    ahead: Tensor,
    behind: Tensor,
    norm: Tensor,
    radius: float,
    gamma: float,
    rate: Tensor | None = None,
) -> Tensor:
    check_vectors("neumann_step_", v=v, series=series, ahead=ahead, behind=behind)
    check_scalar("neumann_step_", "norm", norm, torch.float64, v)
    if rate is not None:
        check_scalar("neumann_step_", "gamma", rate, torch.float64, v)
    return v.new_empty((), dtype=torch.float64)


run_elsewhere("neumann_step_", _neumann_step_fake, _neumann_step_ref)
run_triton("neumann_step_", "neumann", _neumann_step_fake, _neumann_step_ref)
