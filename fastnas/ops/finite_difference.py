"""The two elementwise halves of a central difference: a step along u, and the difference over twice its length.

Both compute eps = radius / |u| from the norm (``vector_norm``) where it lies, so no number visits the host.
"""

import torch
from torch import Tensor

from fastnas.errors import FastnasError
from fastnas.ops._vectors import call, check_scalar, check_tensors, check_vectors, number, run_elsewhere


def perturb_(w: Tensor, saved: Tensor, u: Tensor, norm: Tensor, radius: float, sign: int) -> Tensor:
    """w <- saved + sign eps u, in one pass.

    eps = radius / |u| (Liu et al. 2019, section 2.3), and 0, no step, where that is not finite: u is 0, or so
    small that eps overflows w's dtype, or its norm is NaN.

    Args:
        w: shape (P,), float32 or float64, contiguous; written.
        saved: where the step starts, like w; may be w itself.
        u: the direction, like w.
        norm: |u|, shape (), float64, on w's device.
        radius: length of the step, in the units of w; > 0.
        sign: 1 or -1.

    Returns:
        w.

    Raises:
        FastnasError: on arguments that do not fit together; nothing is written then.

    Example:
        >>> from fastnas.ops import vector_norm
        >>> u = torch.tensor([3.0, 4.0])
        >>> perturb_(torch.empty(2), torch.ones(2), u, vector_norm(u), radius=0.5, sign=-1)
        tensor([0.7000, 0.6000])
    """
    check_tensors("perturb_", w=w, saved=saved, u=u, norm=norm)
    radius = number("perturb_", "radius", radius, above=True)
    if sign not in (1, -1):
        raise FastnasError(f"perturb_: sign must be 1 or -1, got {sign!r}")
    call("perturb_", w, saved, u, norm, radius, sign, written=[w])
    return w


def difference_(ahead: Tensor, behind: Tensor, norm: Tensor, radius: float) -> Tensor:
    """ahead <- (ahead - behind) / (2 eps), in one pass.

    1 / (2 eps) = |u| / (2 radius): exactly 0 for u = 0, and NaN where u has one (with an infinite entry, too,
    since no step was taken then).

    Args:
        ahead: the value after the step forwards, shape (P,), float32 or float64, contiguous; written.
        behind: after the step backwards, like ahead.
        norm: |u|, shape (), float64, on ahead's device.
        radius: as of ``perturb_``.

    Returns:
        ahead.

    Raises:
        FastnasError: on arguments that do not fit together; nothing is written then.

    Example:
        >>> difference_(torch.tensor([1.5]), torch.tensor([1.0]), torch.tensor(4.0).double(), radius=0.5)
        tensor([2.])
    """
    check_tensors("difference_", ahead=ahead, behind=behind, norm=norm)
    radius = number("difference_", "radius", radius, above=True)
    call("difference_", ahead, behind, norm, radius, written=[ahead])
    return ahead


def _perturb_ref(w: Tensor, saved: Tensor, u: Tensor, norm: Tensor, radius: float, sign: int) -> None:
    """``perturb_`` in plain PyTorch."""
    eps = torch.nan_to_num((radius / norm).to(w.dtype), posinf=0.0)
    torch.addcmul(saved, u, eps, value=sign, out=w)


def _difference_ref(ahead: Tensor, behind: Tensor, norm: Tensor, radius: float) -> None:
    """``difference_`` in plain PyTorch."""
    ahead.sub_(behind).mul_(norm / (2 * radius))


@torch.library.register_fake("fastnas::perturb_")
def _perturb_fake(w: Tensor, saved: Tensor, u: Tensor, norm: Tensor, radius: float, sign: int) -> None:
    check_vectors("perturb_", w=w, saved=saved, u=u)
    check_scalar("perturb_", "norm", norm, torch.float64, w)


@torch.library.register_fake("fastnas::difference_")
def _difference_fake(ahead: Tensor, behind: Tensor, norm: Tensor, radius: float) -> None:
    check_vectors("difference_", ahead=ahead, behind=behind)
    check_scalar("difference_", "norm", norm, torch.float64, ahead)


run_elsewhere("perturb_", _perturb_fake, _perturb_ref)
run_elsewhere("difference_", _difference_fake, _difference_ref)
