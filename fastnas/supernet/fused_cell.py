"""One cell of a supernet as one autograd function over one native op.

Kept for backward are the nodes and the raw outputs that enter a node or an input's state. Those states, pooled ones,
depthwise outputs and what lies in the middle of a separable convolution are computed again. With ``recompute`` only
the cell's inputs and output are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import fastnas._extension  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.errors import FastnasError
from fastnas.supernet.cell_plan import CellPlan
from fastnas.supernet.primitives import EPS

OPS = torch.ops.fastnas


def fused_cell(
    plan: CellPlan,
    inputs: Sequence[Tensor],
    mixing: Tensor,
    weights: Tensor,
    statistics: Tensor,
    training: bool,
    recompute: bool = False,
) -> Tensor:
    """The output of a cell, its output states side by side; differentiable once.

    Args:
        plan: of the cell.
        inputs: outputs of earlier stages, (B, C_i, H, W).
        mixing: (edges, primitives) softmaxed architecture parameters.
        weights: (P_cell,) the cell's span of the arena.
        statistics: (norms, 2, C) means and variances; written in training (the batch's), read in evaluation.
        training: normalise with the batch's statistics.
        recompute: keep no branch outputs for backward, compute them again there.

    On the CPU all tensors may be complex, as dual numbers: see ``fastnas/supernet/tangents.py``.

    Returns:
        (B, C len(outputs), H', W'), channels last.
    """
    inputs = [x.contiguous(memory_format=torch.channels_last) for x in inputs]
    return _FusedCell.apply(plan.numbers, statistics, training, recompute, mixing, weights, *inputs)


class _FusedCell(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        plan: Tensor,
        statistics: Tensor,
        training: bool,
        recompute: bool,
        mixing: Tensor,
        weights: Tensor,
        *inputs: Tensor,
    ) -> Tensor:
        out, kept = OPS.cell(
            plan, inputs, mixing.reshape(-1), weights, statistics, EPS, training, not recompute
        )
        ctx.plan, ctx.training, ctx.count = plan, training, len(inputs)
        ctx.save_for_backward(mixing, weights, statistics, out, *inputs, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise FastnasError(
                "the fused supernet is differentiable once; for second derivatives take backend='reference', "
                "or finite differences (fastnas.bilevel.hessian_vector_product)"
            )
        mixing, weights, statistics, out, *rest = ctx.saved_tensors
        inputs, kept = rest[: ctx.count], rest[ctx.count :]
        mixing_wanted, weights_wanted, *inputs_wanted = ctx.needs_input_grad[4:]
        mixing_grad, weights_grad, input_grads = OPS.cell_backward(
            ctx.plan, grad.clone(memory_format=torch.channels_last), out, kept, inputs, mixing.reshape(-1), weights,
            statistics, EPS, ctx.training, weights_wanted, inputs_wanted,
        )  # fmt: skip
        return (
            None,
            None,
            None,
            None,
            mixing_grad.view_as(mixing) if mixing_wanted else None,
            weights_grad if weights_wanted else None,
            *(grad if wanted else None for grad, wanted in zip(input_grads, inputs_wanted, strict=True)),
        )
