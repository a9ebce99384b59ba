"""One cell of a supernet as one autograd function over the native ops.

A forward pass runs the plan's groups of edges in the order of the states that they read, a backward pass in reverse:
when a group's turn comes, all nodes that it feeds have their gradients. Between the calls for a group nothing but its
own tensors is touched. Kept for backward are the states and the raw outputs that enter a node; pooled states,
depthwise outputs and what lies in the middle of a separable convolution are computed
again. With ``recompute`` only the cell's inputs and output are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import fastnas._extension  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.errors import FastnasError
from fastnas.supernet.cell_plan import NONE, CellPlan, EdgeGroup, Term
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

    Returns:
        (B, C len(outputs), H', W'), channels last.
    """
    inputs = [x.contiguous(memory_format=torch.channels_last) for x in inputs]
    return _FusedCell.apply(plan, statistics, training, recompute, mixing, weights, *inputs)


class _FusedCell(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        plan: CellPlan,
        statistics: Tensor,
        training: bool,
        recompute: bool,
        mixing: Tensor,
        weights: Tensor,
        *inputs: Tensor,
    ) -> Tensor:
        run = CellPass(plan, statistics, training, mixing.reshape(-1), weights, inputs)
        out = run.forward()
        ctx.plan, ctx.training, ctx.mixing_shape = plan, training, mixing.shape
        kept = [] if recompute else run.kept()
        ctx.counts = [len(group) for group in kept]
        ctx.save_for_backward(
            statistics, run.mixing, weights, out, *inputs, *(t for group in kept for t in group)
        )
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise FastnasError(
                "the fused supernet is differentiable once; for second derivatives take backend='reference', "
                "or finite differences (fastnas.bilevel.hessian_vector_product)"
            )
        statistics, mixing, weights, out, *rest = ctx.saved_tensors
        plan: CellPlan = ctx.plan
        inputs, rest = rest[: len(plan.preprocessing)], rest[len(plan.preprocessing) :]
        run = CellPass(plan, statistics, ctx.training, mixing, weights, inputs)
        groups = []
        for count in ctx.counts:
            groups.append(rest[:count])
            rest = rest[count:]
        if groups:
            run.restore(out, groups)
        else:
            run.recompute(out)
        del out, rest, groups
        mixing_needed, weights_needed = ctx.needs_input_grad[4:6]
        mixing_grad, weights_grad, input_grads = run.backward(grad, weights_needed)
        mixing_grad = mixing_grad.view(ctx.mixing_shape)
        return None, None, None, None, mixing_grad if mixing_needed else None, weights_grad, *input_grads


class CellPass:
    """One pass through a cell and the tensors that it makes.

    Attributes:
        projected: raw outputs of the preprocessing of those inputs that have one.
        states: of the cell; the output states are slices of its output.
        first, second: raw outputs of the calls for each group. Those of ``first`` that feed ``second`` are there as
            long as ``second`` needs them.
        pooled: average and maximum, as far as wanted, of the state that is read.
    """

    def __init__(
        self,
        plan: CellPlan,
        statistics: Tensor,
        training: bool,
        mixing: Tensor,
        weights: Tensor,
        inputs: Sequence[Tensor],
    ) -> None:
        self.plan, self.statistics, self.training = plan, statistics, training
        self.mixing, self.weights, self.inputs = mixing, weights, inputs
        self.projected: list[Tensor] = []
        self.states: list[Tensor] = []
        self.first: list[dict[int, Tensor]] = []
        self.second: list[list[Tensor]] = []
        self.pooled: dict[str, Tensor] = {}

    # ------------------------------------------------------------------ forward

    def forward(self) -> Tensor:
        plan, spec = self.plan, self.plan.spec
        for x, preprocessing in zip(self.inputs, plan.preprocessing, strict=True):
            self.states.append(self._preprocess(x, preprocessing.table, preprocessing.norm))
        out = self._images(spec.channels * len(spec.output))
        slots = dict(zip(spec.output, out.split(spec.channels, dim=1), strict=True))
        for state in range(spec.states):
            if state >= len(self.inputs):
                self.states.append(slots[state] if state in slots else self._images(spec.channels))
            elif state in slots:
                slots[state].copy_(self.states[state])
        for node in plan.empty:
            self.states[node].zero_()
        begun: set[int] = set()
        for group in plan.groups:
            self._read(group)
            if group.opens:
                self._pool(group, self.training)
            for target, terms in zip(group.targets, group.terms, strict=True):
                if terms:
                    self._add_to_node(target, *self._terms(len(self.first) - 1, terms), target in begun)
                    begun.add(target)
        self.pooled = {}  # computed again in backward
        return out

    def kept(self) -> list[list[Tensor]]:
        """What backward needs beside the cell's output and inputs, in groups whose number does not vary."""
        own = [s for i, s in enumerate(self.states) if self._is_own(i)]
        return [self.projected, own, *(list(first.values()) for first in self.first), *self.second]

    def restore(self, out: Tensor, groups: list[list[Tensor]]) -> None:
        """The inverse of ``kept``, with the cell's output."""
        self.projected, own, *raws = groups
        self._restore_states(out, own)
        half = len(self.plan.groups)
        self.first = [
            dict(zip(group.ends, first, strict=True))
            for group, first in zip(self.plan.groups, raws[:half], strict=True)
        ]
        self.second = raws[half:]

    def recompute(self, out: Tensor) -> None:
        """All that ``kept`` would have kept, from the cell's inputs and output and its statistics."""
        training, self.training = self.training, False  # the statistics are known
        own = [
            self._preprocess(x, preprocessing.table, preprocessing.norm)
            for x, preprocessing in zip(self.inputs, self.plan.preprocessing, strict=True)
            if preprocessing.table
        ]
        self._restore_states(out, own)
        for group in self.plan.groups:
            self._read(group)
        self.training = training

    def _restore_states(self, out: Tensor, own: list[Tensor]) -> None:
        spec = self.plan.spec
        slots = dict(zip(spec.output, out.split(spec.channels, dim=1), strict=True))
        remaining = iter(own)
        for i in range(spec.states):
            if self._is_own(i):
                self.states.append(next(remaining))
            else:
                self.states.append(self.inputs[i] if i < len(self.inputs) else slots[i])

    def _is_own(self, state: int) -> bool:
        """Whether a state is neither an input as it is nor a slice of the output."""
        if state < len(self.inputs):
            return bool(self.plan.preprocessing[state].table)
        return state not in self.plan.spec.output

    def _preprocess(self, x: Tensor, table: list[int], norm: int) -> Tensor:
        if not table:
            return x
        (raw,) = self._stage([x], [NONE], table)
        self.projected.append(raw)
        state = torch.empty_like(raw)
        OPS.normalised_mixed_sum([raw], [norm], self.mixing, [NONE], self.statistics, EPS, state, False)
        return state

    def _read(self, group: EdgeGroup) -> None:
        """All convolutions of a group, up to their raw outputs."""
        first: list[Tensor] = []
        second: list[Tensor] = []
        if group.first:
            first = self._stage([self.states[group.state]], [NONE], group.first_table)
        if group.second:
            second = self._stage([first[i] for i in group.middle], group.middle_norms, group.second_table)
        self.first.append({i: first[i] for i in group.ends})
        self.second.append(second)

    def _stage(self, sources: list[Tensor], norms: list[int], table: list[int]) -> list[Tensor]:
        raws: list[Tensor] = OPS.separable_stage(
            sources, norms, self.weights, self.statistics, table, EPS, self.training
        )
        return raws

    def _pool(self, group: EdgeGroup, statistics: bool) -> None:
        pooling = group.pooling
        kinds = [kind for kind, wanted in pooling.kinds.items() if wanted]
        pooled: list[Tensor] = []
        if kinds:
            pooled = OPS.shared_pooling(
                self.states[group.state],
                group.stride,
                pooling.kinds["average"],
                pooling.kinds["maximum"],
                pooling.norms["average"] if statistics else [],
                pooling.norms["maximum"] if statistics else [],
                self.statistics,
            )
        self.pooled = dict(zip(kinds, pooled, strict=True))

    def _terms(self, index: int, terms: list[Term]) -> tuple[list[Tensor], list[int], list[int]]:
        """Summands out of group ``index``, their norms and the indices of their mixing weights."""
        tensors = []
        for term in terms:
            if term.call == "state":
                tensors.append(self.states[self.plan.groups[index].state])
            elif term.call == "first":
                tensors.append(self.first[index][term.index])
            elif term.call == "second":
                tensors.append(self.second[index][term.index])
            else:
                tensors.append(self.pooled[term.call])
        return tensors, [term.norm for term in terms], [term.weight for term in terms]

    def _add_to_node(
        self, node: int, tensors: list[Tensor], norms: list[int], indices: list[int], begun: bool
    ) -> None:
        OPS.normalised_mixed_sum(
            tensors, norms, self.mixing, indices, self.statistics, EPS, self.states[node], begun
        )

    # ------------------------------------------------------------------ backward

    def backward(self, grad: Tensor, weights_needed: bool) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Gradients of the mixing weights, the weights (None: not needed) and the inputs."""
        plan, spec = self.plan, self.plan.spec
        self.coefficients = self.statistics.new_empty(plan.norms, 3, spec.channels)
        self.mixing_grad = torch.zeros_like(self.mixing)
        self.weights_grad = [torch.empty_like(self.weights)] if weights_needed else []
        if not len(grad) and weights_needed:  # an empty batch: nothing will be written
            self.weights_grad[0].zero_()
        self.grads = self._state_grads(grad)
        for index in reversed(range(len(plan.groups))):
            self._read_backward(index)
        input_grads = self._preprocess_backward()
        if weights_needed:
            self._bias_gradients(self.weights_grad[0])
        return self.mixing_grad, self.weights_grad[0] if weights_needed else None, input_grads

    def _state_grads(self, grad: Tensor) -> list[Tensor]:
        """What each state's gradient begins with: that of the output, or zeros."""
        spec = self.plan.spec
        own = torch.empty_like(grad, memory_format=torch.channels_last).copy_(grad)
        slots = dict(zip(spec.output, own.split(spec.channels, dim=1), strict=True))
        return [
            slots[i] if i in slots else torch.zeros_like(state, memory_format=torch.channels_last)
            for i, state in enumerate(self.states)
        ]

    def _read_backward(self, index: int) -> None:
        group = self.plan.groups[index]
        if group.closes:
            self._pool(group, statistics=False)
        for target, terms in zip(group.targets, group.terms, strict=True):
            if terms:
                self._sum_backward(self.grads[target], *self._terms(index, terms))
        x, x_grad = self.states[group.state], self.grads[group.state]
        targets = [self.grads[target] for target in group.targets]
        first, second = self.first[index], self.second[index]
        middle_grads: list[Tensor] = []
        shared = (self.weights, self.statistics, self.coefficients)
        if group.second:
            middle = OPS.separable_stage(
                [x], [NONE], self.weights, self.statistics, group.middle_table, EPS, False
            )
            first.update(zip(group.middle, middle, strict=True))
            middle_grads = [torch.empty_like(t) for t in middle]
            OPS.separable_stage_backward(
                targets, second, middle, group.middle_norms, *shared, group.second_table, EPS, self.training,
                self.weights_grad, middle_grads,
            )  # fmt: skip
        if group.first:
            OPS.separable_stage_backward(
                [*targets, *middle_grads], [first[i] for i in range(group.outputs)], [x], [NONE], *shared,
                group.first_table, EPS, self.training, self.weights_grad, [x_grad],
            )  # fmt: skip
        if group.opens:
            self._pool_backward(group)
        self.first[index], self.second[index] = {}, []

    def _pool_backward(self, group: EdgeGroup) -> None:
        OPS.shared_pooling_backward(
            self.states[group.state],
            group.stride,
            [self.pooled["average"]] if "average" in self.pooled else [],
            [self.pooled["maximum"]] if "maximum" in self.pooled else [],
            [self.grads[target] for target in group.pooling.targets],
            group.pooling.table,
            self.statistics,
            self.coefficients,
            self.mixing,
            self.grads[group.state],
        )

    def _sum_backward(
        self, grad: Tensor, tensors: list[Tensor], norms: list[int], indices: list[int]
    ) -> None:
        OPS.normalised_mixed_sum_backward(
            grad, tensors, norms, self.mixing, indices, self.statistics, EPS, self.training,
            self.coefficients, self.mixing_grad,
        )  # fmt: skip

    def _preprocess_backward(self) -> list[Tensor]:
        input_grads = []
        projected = iter(self.projected)
        for i, preprocessing in enumerate(self.plan.preprocessing):
            grad = self.grads[i]
            if preprocessing.table:
                raw = next(projected)
                self._sum_backward(grad, [raw], [preprocessing.norm], [NONE])
                x = self.inputs[i]
                x_grad = torch.zeros_like(x, memory_format=torch.channels_last)
                OPS.separable_stage_backward(
                    [grad], [raw], [x], [NONE], self.weights, self.statistics, self.coefficients,
                    preprocessing.table, EPS, self.training, self.weights_grad, [x_grad],
                )  # fmt: skip
                grad = x_grad
            input_grads.append(grad)
        return input_grads

    def _bias_gradients(self, weights_grad: Tensor) -> None:
        """Those of convolutions' biases: zero where the batch's mean is taken away behind, else a sum of gradients."""
        channels = self.plan.spec.channels
        for norm, offset in self.plan.biases.items():
            grad = weights_grad[offset : offset + channels]
            if self.training:
                grad.zero_()
            else:
                target = next(
                    node
                    for group in self.plan.groups
                    for node, terms in zip(group.targets, group.terms, strict=True)
                    if any(term.norm == norm for term in terms)
                )
                torch.mul(self.coefficients[norm, 0], self.grads[target].sum((0, 2, 3)), out=grad)

    def _images(self, channels: int) -> Tensor:
        """Uninitialised, in the size of the nodes."""
        model = self.states[0]
        count, _, *size = model.shape
        height, width = (-(-side // self.plan.stride) for side in size)
        return torch.empty(
            (count, channels, height, width),
            dtype=model.dtype,
            device=model.device,
            memory_format=torch.channels_last,
        )
