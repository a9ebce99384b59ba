"""The weight step that second-order DARTS differentiates through (Liu et al. 2019, eq. 7), in one pass over memory.

Roofline, for n elements of s bytes: reads 3 n s, writes n s, 6 n flops. For the DARTS supernet's 1,930,618 float32
weights 30.9 MB, 10.3 us on an H100 at the 3.0 TB/s that a device-to-device copy was measured at: bound by memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# dtype -> elements of a program, warps: two packs of 16 bytes a thread and array
CONFIGURATIONS = {torch.float32: (2048, 8), torch.float64: (1024, 8)}


@triton.jit
def _stepped(w, grad, buffer, rate, momentum, weight_decay, DECAYS: tl.constexpr, offsets, mask):
    """Moves one block. Without a mask, whole blocks, accesses are of 16 bytes for every n."""
    before = tl.load(w + offsets, mask=mask)
    step = tl.load(grad + offsets, mask=mask)
    if DECAYS:
        step += weight_decay * before
    if buffer is not None:
        step += momentum * tl.load(buffer + offsets, mask=mask)
    tl.store(w + offsets, before - rate * step, mask=mask)


@triton.jit(do_not_specialize=["n"])
def step_kernel(
    w,
    grad,
    buffer,  # None without momentum
    learning_rate: tl.float64,
    rate,  # None, or where the learning rate is
    momentum: tl.float64,
    weight_decay: tl.float64,
    n,
    DECAYS: tl.constexpr,  # without decay w does not enter the step: 0 times an infinite weight would be NaN
    BLOCK: tl.constexpr,
):
    T = w.dtype.element_ty
    step_rate = tl.full((), learning_rate, tl.float64) if rate is None else tl.load(rate)
    factors = (
        step_rate.to(T),
        tl.full((), momentum, tl.float64).to(T),
        tl.full((), weight_decay, tl.float64).to(T),
    )
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = start + tl.arange(0, BLOCK)
    if start + BLOCK <= n:
        _stepped(w, grad, buffer, factors[0], factors[1], factors[2], DECAYS, offsets, None)
    else:
        _stepped(w, grad, buffer, factors[0], factors[1], factors[2], DECAYS, offsets, offsets < n)


def virtual_step_(
    w: Tensor,
    grad: Tensor,
    buffer: Tensor | None,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    rate: Tensor | None = None,
) -> None:
    """The op of the same name, as ``torch.ops.fastnas`` calls it (``fastnas.ops.virtual_step_``)."""
    if w.numel() == 0:
        return
    block, warps = CONFIGURATIONS[w.dtype]
    with torch.cuda.device_of(w):
        step_kernel[(triton.cdiv(w.numel(), block),)](
            w,
            grad,
            buffer if momentum else None,
            learning_rate,
            rate,
            momentum,
            weight_decay,
            w.numel(),
            DECAYS=weight_decay != 0,
            BLOCK=block,
            num_warps=warps,
        )
