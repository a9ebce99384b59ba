"""One step of the Neumann series of Zhang et al. 2021, eq. 9, in one pass over memory.

Roofline, for n elements of s bytes: reads 4 n s, writes 2 n s, about 7 n flops. For the DARTS supernet's 1,930,618
float32 weights 46.3 MB, 15.4 us on an H100 at the 3.0 TB/s that a device-to-device copy was measured at: bound by
memory. ``difference_``, two updates and ``vector_norm`` would move 10 n s.

A program leaves the sum of the squares of its block, in float64, and one more program adds these up: the order is a
function of n alone, and there are no atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# dtype -> elements of a program, warps: two packs of 16 bytes a thread and array
CONFIGURATIONS = {torch.float32: (2048, 8), torch.float64: (1024, 8)}
ROOT_BLOCK, ROOT_WARPS = 1024, 8


@triton.jit
def _moved(v, series, ahead, behind, factor, offsets, mask):
    """Moves one block; its squares, in float64. Without a mask, whole blocks, accesses are of 16 bytes for every n."""
    difference = tl.load(ahead + offsets, mask=mask) - tl.load(behind + offsets, mask=mask)
    sum_before = tl.load(series + offsets, mask=mask)
    moved = tl.load(v + offsets, mask=mask) - factor * difference
    tl.store(v + offsets, moved, mask=mask)
    tl.store(series + offsets, sum_before + moved, mask=mask)
    wide = moved.to(tl.float64)
    return wide * wide


@triton.jit(do_not_specialize=["n"])
def step_kernel(
    v,
    series,
    ahead,
    behind,
    norm,  # |v| before
    shares,  # receives the sum of squares of each program's block
    per_norm: tl.float64,  # gamma / (2 radius), without gamma if that is at `rate`
    rate,  # None, or where gamma is
    n,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    factor = tl.load(norm) * per_norm
    if rate is not None:
        factor *= tl.load(rate)
    factor = factor.to(v.dtype.element_ty)
    offsets = program * BLOCK + tl.arange(0, BLOCK)
    if program * BLOCK + BLOCK <= n:
        squares = _moved(v, series, ahead, behind, factor, offsets, None)
    else:
        inside = offsets < n
        squares = _moved(v, series, ahead, behind, factor, offsets, inside)
        squares = tl.where(inside, squares, 0.0)
    tl.store(shares + program, tl.sum(squares, 0))


@triton.jit(do_not_specialize=["count"])
def root_kernel(shares, norm, count, BLOCK: tl.constexpr):
    """One program: the root of the sum of all shares."""
    total = tl.zeros([BLOCK], tl.float64)
    start = 0
    while start < count:  # no range(): the interpreter of Triton 3.6 cannot take its length with NumPy 2.4
        offsets = start + tl.arange(0, BLOCK)
        total += tl.load(shares + offsets, mask=offsets < count, other=0.0)
        start += BLOCK
    tl.store(norm, tl.sqrt(tl.sum(total, 0)))


def neumann_step_(
    v: Tensor,
    series: Tensor,
    ahead: Tensor,
    behind: Tensor,
    norm: Tensor,
    radius: float,
    gamma: float,
    rate: Tensor | None = None,
) -> Tensor:
    """The op of the same name, as ``torch.ops.fastnas`` calls it (``fastnas.ops.neumann_step_``)."""
    block, warps = CONFIGURATIONS[v.dtype]
    n = v.numel()
    programs = triton.cdiv(n, block)
    shares = v.new_empty(programs, dtype=torch.float64)
    new_norm = v.new_empty((), dtype=torch.float64)
    per_norm = (1.0 if rate is not None else gamma) / (2 * radius)
    with torch.cuda.device_of(v):
        if programs:
            step_kernel[(programs,)](
                v, series, ahead, behind, norm, shares, per_norm, rate, n, BLOCK=block, num_warps=warps
            )
        root_kernel[(1,)](shares, new_norm, programs, BLOCK=ROOT_BLOCK, num_warps=ROOT_WARPS)
    return new_norm
