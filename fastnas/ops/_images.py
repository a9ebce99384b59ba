"""What the ops on batches of images (B, C, H, W) share: their checks, the memory that kernels read, and statistics.

The statistics of K branches are (K, 2, C): mean and biased variance of each channel over the batch and its pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real

import torch
from torch import Tensor

from fastnas.build_info import build_info
from fastnas.errors import FastnasError


def check_images(op: str, name: str, x: object) -> Tensor:
    """``x``; raise unless it is a tensor (B, C, H, W) of a dtype and on a device that kernels are for.

    They are for float32 and float64 on the CPU, for float32 and bfloat16 on CUDA where the build has it.
    """
    if not isinstance(x, Tensor):
        raise FastnasError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
    if x.dim() != 4:
        raise FastnasError(f"{op}: {name} must have shape (B, C, H, W), got {tuple(x.shape)}")
    on_cuda = x.device.type == "cuda"
    if on_cuda and not build_info().cuda:
        raise FastnasError(
            f"{op}: {name} is on {x.device}, but this build of fastnas has no CUDA kernels; "
            "rebuild it with FASTNAS_CUDA=1"
        )
    if not on_cuda and x.device.type != "cpu":
        raise FastnasError(f"{op}: {name} must be on the CPU or on CUDA, got {x.device}")
    if x.dtype not in (torch.float32, torch.bfloat16 if on_cuda else torch.float64):
        kinds = "bfloat16 on CUDA" if on_cuda else "float64 on the CPU"
        raise FastnasError(f"{op}: {name} must be float32 or {kinds}, got {dtype_text(x)}")
    return x


def numbers_dtype(images: Tensor) -> torch.dtype:
    """The dtype of the numbers beside images (weights, statistics, coefficients): float32 beside bfloat16."""
    return torch.float32 if images.dtype == torch.bfloat16 else images.dtype


def check_numbers(
    op: str, name: str, tensor: object, shape: Iterable[int], model_name: str, model: Tensor
) -> None:
    """Raise unless ``tensor`` has ``shape`` and is on the device of the images ``model``, in their numbers' dtype."""
    check_like(op, name, tensor, shape, model_name, model, numbers_dtype(model))


def check_like(
    op: str,
    name: str,
    tensor: object,
    shape: Iterable[int],
    model_name: str,
    model: Tensor,
    dtype: torch.dtype | None = None,
) -> None:
    """Raise unless ``tensor`` has ``shape``, the device of ``model`` and ``dtype`` (None: also of ``model``)."""
    dtype = model.dtype if dtype is None else dtype
    if not isinstance(tensor, Tensor):
        raise FastnasError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
    if tuple(tensor.shape) != tuple(shape):
        raise FastnasError(f"{op}: {name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if (tensor.dtype, tensor.device) != (dtype, model.device):
        relation = (
            f"as {model_name} is" if dtype == model.dtype else f"beside {model_name} of {dtype_text(model)}"
        )
        raise FastnasError(
            f"{op}: {name} must be {_text(dtype)} on {model.device} {relation}, "
            f"got {dtype_text(tensor)} on {tensor.device}"
        )


def check_one_device(op: str, *arguments: object) -> None:
    """Raise unless all tensors, and those in lists, are on one device: what a fake kernel does not see by itself."""
    tensors = [item for value in arguments for item in (value if isinstance(value, list) else [value])]
    devices = {str(tensor.device) for tensor in tensors if isinstance(tensor, Tensor)}
    if len(devices) > 1:
        raise FastnasError(f"{op}: all tensors must be on one device, got {' and '.join(sorted(devices))}")


def check_eps(op: str, eps: object) -> float:
    """``eps`` as a float; raise unless it is a finite number >= 0."""
    if isinstance(eps, Real) and not isinstance(eps, bool) and math.isfinite(eps) and float(eps) >= 0:
        return float(eps)
    raise FastnasError(f"{op}: eps must be a finite number >= 0, got {eps!r}")


def is_training(op: str, statistics: Tensor | None, training: bool | None) -> bool:
    """Whether gradients flow through the statistics: by default exactly where none are given."""
    if training is False and statistics is None:
        raise FastnasError(f"{op}: training=False needs statistics to normalise with, got none")
    return statistics is None if training is None else training


def channels_last(x: Tensor) -> Tensor:
    """``x`` where kernels can read it, else a channels-last copy.

    They can where channels are neighbours and pixels equally far apart: in channels-last memory and in a
    slice of its channels (csrc/images.h).
    """
    count, channels, height, width = x.shape
    if width > 1:
        pixel = x.stride(3)
    elif height > 1:
        pixel = x.stride(2)
    else:
        pixel = x.stride(0) if count > 1 else channels
    fits = (
        (channels <= 1 or x.stride(1) == 1)
        and pixel >= channels
        and (height <= 1 or x.stride(2) == width * pixel)
        and (count <= 1 or x.stride(0) == height * width * pixel)
    )
    return x if fits else x.contiguous(memory_format=torch.channels_last)


def empty_images(model: Tensor, count: int, channels: int, height: int, width: int) -> Tensor:
    """Uninitialised, in channels-last memory, of the model's dtype and device."""
    return model.new_empty(count, height, width, channels).permute(0, 3, 1, 2)


@torch.no_grad()
def batch_statistics(x: Tensor) -> Tensor:
    """Mean and biased variance of each channel, (2, C), accumulated in float64; zeros for an empty batch.

    The variance is that of ``x`` less the mean, so a mean far from zero costs no digits.
    """
    numbers = numbers_dtype(x)
    if x.numel() == 0:
        return x.new_zeros(2, x.shape[1], dtype=numbers)
    mean = x.mean((0, 2, 3), dtype=torch.float64)
    shift = mean.to(numbers)
    off = (x - per_channel(shift)).square_()
    variance = off.mean((0, 2, 3), dtype=torch.float64) - (mean - shift).square()
    return torch.stack([shift, variance.clamp_(min=0).to(numbers)])


def normalised_gradient(
    coefficients: Tensor, mean: Tensor, grad: Tensor, x: Tensor, training: bool
) -> Tensor:
    """a (grad + b (x - mean) + c) with a, b, c the rows of ``coefficients`` (3, C); b = c = 0 in evaluation."""
    a, b, c = (per_channel(row) for row in coefficients)
    full = (grad + c).addcmul_(b, x - per_channel(mean)).mul_(a) if training else a * grad
    return full.to(grad.dtype)


def per_channel(values: Tensor) -> Tensor:
    """(C,) as it meets images: (1, C, 1, 1)."""
    return values.view(1, -1, 1, 1)


def normalised(x: Tensor, statistics: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) in plain PyTorch, of statistics (2, C)."""
    mean, variance = (per_channel(row) for row in statistics)
    return (x - mean) * torch.rsqrt(variance + eps)


def plain_statistics(x: Tensor) -> Tensor:
    """``batch_statistics`` as plain PyTorch computes them, differentiable."""
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return torch.stack([mean, variance])


def as_kernels_give(
    outputs: Sequence[Tensor], statistics: Tensor, images: Tensor
) -> tuple[list[Tensor], Tensor]:
    """What plain PyTorch computed, in the dtypes that kernels write beside ``images``."""
    return [out.to(images.dtype) for out in outputs], statistics.to(numbers_dtype(images))


def dtype_text(tensor: Tensor) -> str:
    return _text(tensor.dtype)


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
