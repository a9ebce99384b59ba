"""A recurrent supernet's node and its gradients (``fastnas.ops.highway_sum``), each in one pass over memory.

Roofline, for S sources of n = B units elements of s bytes: forward reads 3 S n s and writes n s, backward reads
4 S n s, grad once a source, and writes 3 S n s; two exponentials an element and direction. For 8 sources
of 256 x 300 float32 7.7 MB and 17.2 MB: bound by memory.

Where a sum over elements is wanted, a program leaves its block's share: the order is a function of sizes alone, and
there are no atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ACTIVATIONS = 4
# dtype -> elements of a program, warps
CONFIGURATIONS = {torch.float32: (512, 4), torch.float64: (256, 4)}


@triton.jit
def _unit(states, raw, source, offsets, inside, rows, units):
    """State, gate, tanh, relu, sigmoid and the value itself of one source's elements.

    sigmoid(|x|) = 1 / (1 + t) and tanh(|x|) = (1 - t)(1 + t) / (1 + t^2) with t = e^-|x|: nothing overflows.
    """
    count = rows * units
    at = source * count + offsets
    row = source * rows + offsets // units
    raw_at = row * 2 * units + offsets % units
    state = tl.load(states + at, mask=inside, other=0.0)
    gate = tl.load(raw + raw_at, mask=inside, other=0.0)
    value = tl.load(raw + raw_at + units, mask=inside, other=0.0)
    s = tl.exp(-tl.abs(gate))
    t = tl.exp(-tl.abs(value))
    gate = tl.where(gate > 0, 1.0, s) / (1.0 + s)
    tanh = (1.0 - t) * (1.0 + t) / (1.0 + t * t)
    tanh = tl.where(value > 0, tanh, -tanh)
    relu = tl.where(value > 0, value, 0.0)
    sigmoid = tl.where(value > 0, 1.0, t) / (1.0 + t)
    return state, gate, tanh, relu, sigmoid, value


@triton.jit
def forward_kernel(mixing, states, raw, out, sources, rows, units, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < rows * units
    total = tl.zeros([BLOCK], out.dtype.element_ty)
    source = 0
    while source < sources:  # no range(): the interpreter of Triton 3.6 cannot take its length with NumPy 2.4
        state, gate, tanh, relu, sigmoid, value = _unit(states, raw, source, offsets, inside, rows, units)
        p = mixing + source * 4
        p0, p1, p2, p3 = tl.load(p), tl.load(p + 1), tl.load(p + 2), tl.load(p + 3)
        kept = ((p0 + p1) + (p2 + p3)) * state
        total += kept + gate * (p0 * tanh + p1 * relu + p2 * sigmoid + p3 * value - kept)
        source += 1
    tl.store(out + offsets, total, mask=inside)


@triton.jit
def backward_kernel(
    grad,
    mixing,
    states,
    raw,
    states_grad,
    raw_grad,
    shares,  # (sources, 4, programs): what each program's block adds to d mixing
    rows,
    units,
    BLOCK: tl.constexpr,
):
    source = tl.program_id(1).to(tl.int64)
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < rows * units
    state, gate, tanh, relu, sigmoid, value = _unit(states, raw, source, offsets, inside, rows, units)
    g = tl.load(grad + offsets, mask=inside, other=0.0)
    p = mixing + source * 4
    p0, p1, p2, p3 = tl.load(p), tl.load(p + 1), tl.load(p + 2), tl.load(p + 3)
    weight = (p0 + p1) + (p2 + p3)
    closed = g * (1.0 - gate)
    through = g * gate
    mixed = p0 * tanh + p1 * relu + p2 * sigmoid + p3 * value
    slope = p0 * (1.0 - tanh * tanh) + tl.where(value > 0, p1, 0.0) + p2 * (sigmoid * (1.0 - sigmoid)) + p3
    row = source * rows + offsets // units
    raw_at = row * 2 * units + offsets % units
    tl.store(states_grad + source * rows * units + offsets, weight * closed, mask=inside)
    tl.store(raw_grad + raw_at, (mixed - weight * state) * gate * closed, mask=inside)
    tl.store(raw_grad + raw_at + units, slope * through, mask=inside)
    kept = closed * state
    programs = tl.num_programs(0)
    share = shares + source * 4 * programs + tl.program_id(0)
    tl.store(share, tl.sum(kept + through * tanh, 0))
    tl.store(share + programs, tl.sum(kept + through * relu, 0))
    tl.store(share + 2 * programs, tl.sum(kept + through * sigmoid, 0))
    tl.store(share + 3 * programs, tl.sum(kept + through * value, 0))


def highway_sum(mixing: Tensor, states: Tensor, raw: Tensor) -> Tensor:
    """The op of the same name, as ``torch.ops.fastnas`` calls it."""
    mixing, states, raw = mixing.contiguous(), states.contiguous(), raw.contiguous()
    sources, rows, units = states.shape
    block, warps = CONFIGURATIONS[states.dtype]
    out = states.new_empty(rows, units)
    programs = triton.cdiv(rows * units, block)
    if programs:
        with torch.cuda.device_of(states):
            forward_kernel[(programs,)](
                mixing, states, raw, out, sources, rows, units, BLOCK=block, num_warps=warps
            )
    return out


def highway_sum_backward(
    grad: Tensor, mixing: Tensor, states: Tensor, raw: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The op of the same name, as ``torch.ops.fastnas`` calls it."""
    grad, mixing, states, raw = (tensor.contiguous() for tensor in (grad, mixing, states, raw))
    sources, rows, units = states.shape
    block, warps = CONFIGURATIONS[states.dtype]
    states_grad, raw_grad = torch.empty_like(states), torch.empty_like(raw)
    programs = triton.cdiv(rows * units, block)
    shares = states.new_empty(sources, ACTIVATIONS, programs)
    if programs:
        with torch.cuda.device_of(states):
            backward_kernel[(programs, sources)](
                grad,
                mixing,
                states,
                raw,
                states_grad,
                raw_grad,
                shares,
                rows,
                units,
                BLOCK=block,
                num_warps=warps,
            )
    return shares.sum(-1), states_grad, raw_grad
