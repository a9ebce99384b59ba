"""One cell of a supernet as one autograd function over the native ops.

A forward pass runs the plan state by state, a backward pass in reverse: when a state's turn comes, all nodes that it
feeds have their gradients, so all of its branches are one call. Kept for backward are the states and the raw outputs
that enter a node; pooled states, depthwise outputs and what lies in the middle of a separable convolution are computed
again. With ``recompute`` only the cell's inputs and output are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import fastnas._extension  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.errors import FastnasError
from fastnas.supernet.cell_plan import NONE, CellPlan, SourcePlan
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
        ctx.save_for_backward(statistics, run.mixing, weights, out, *inputs, *(t for group in kept for t in group))
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
        first, second: raw outputs of the calls for each source plan. Those of ``first`` that feed ``second`` are
            there as long as ``second`` needs them.
        pooled: average and maximum of each source plan's state, as far as wanted.
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
        self.pooled: list[dict[str, Tensor]] = []

    # ------------------------------------------------------------------ forward

    def forward(self) -> Tensor:
        plan, spec = self.plan, self.plan.spec
        for x, preprocessing in zip(self.inputs, plan.preprocessing, strict=True):
            self.states.append(self._preprocess(x, preprocessing.table, preprocessing.norm))
        out = self._images(spec.channels * len(spec.output))
        slots = dict(zip(spec.output, out.split(spec.channels, dim=1), strict=True))
        reading = 0
        for state in range(spec.states):
            if state >= len(self.inputs):
                self.states.append(self._node(state, slots.get(state)))
            elif state in slots:
                slots[state].copy_(self.states[state])
            while reading < len(plan.sources) and plan.sources[reading].state == state:
                self._read(plan.sources[reading])
                reading += 1
        self.pooled = []  # computed again in backward
        return out

    def kept(self) -> list[list[Tensor]]:
        """What backward needs beside the cell's output and inputs, in groups whose number does not vary."""
        own = [s for i, s in enumerate(self.states) if self._is_own(i)]
        return [self.projected, own, *(list(first.values()) for first in self.first), *self.second]

    def restore(self, out: Tensor, groups: list[list[Tensor]]) -> None:
        """The inverse of ``kept``, with the cell's output."""
        self.projected, own, *raws = groups
        self._restore_states(out, own)
        half = len(self.plan.sources)
        self.first = [
            dict(zip(source.ends, first, strict=True))
            for source, first in zip(self.plan.sources, raws[:half], strict=True)
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
        for source in self.plan.sources:
            self._read(source)
        self.pooled = []
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
        OPS.normalised_mixed_sum([raw], [norm], self.mixing, [NONE], self.statistics, EPS, state)
        return state

    def _read(self, source: SourcePlan) -> None:
        """All branches that read a state, up to their raw outputs."""
        x = self.states[source.state]
        first: list[Tensor] = []
        second: list[Tensor] = []
        if source.first:
            first = self._stage([x], [NONE], source.first_table)
        if source.second:
            second = self._stage([first[i] for i in source.middle], source.middle_norms, source.second_table)
        self.first.append({i: first[i] for i in source.ends})
        self.second.append(second)
        self._pool(source, self.training)

    def _stage(self, sources: list[Tensor], norms: list[int], table: list[int]) -> list[Tensor]:
        raws: list[Tensor] = OPS.separable_stage(
            sources, norms, self.weights, self.statistics, table, EPS, self.training
        )
        return raws

    def _pool(self, source: SourcePlan, statistics: bool) -> None:
        norms = source.norms if statistics else {"average": [], "maximum": []}
        kinds = [kind for kind, wanted in source.pooled.items() if wanted]
        pooled: list[Tensor] = []
        if kinds:
            pooled = OPS.shared_pooling(
                self.states[source.state],
                source.stride,
                source.pooled["average"],
                source.pooled["maximum"],
                norms["average"],
                norms["maximum"],
                self.statistics,
            )
        self.pooled.append(dict(zip(kinds, pooled, strict=True)))

    def _terms(self, state: int) -> tuple[list[Tensor], list[int], list[int]]:
        """The summands of a node, their norms and the indices of their mixing weights."""
        tensors = []
        for term in self.plan.terms[state]:
            if term.call == "state":
                tensors.append(self.states[self.plan.sources[term.source].state])
            elif term.call == "first":
                tensors.append(self.first[term.source][term.index])
            elif term.call == "second":
                tensors.append(self.second[term.source][term.index])
            else:
                tensors.append(self.pooled[term.source][term.call])
        terms = self.plan.terms[state]
        return tensors, [term.norm for term in terms], [term.weight for term in terms]

    def _node(self, state: int, slot: Tensor | None) -> Tensor:
        node = self._images(self.plan.spec.channels) if slot is None else slot
        tensors, norms, indices = self._terms(state)
        if tensors:
            OPS.normalised_mixed_sum(tensors, norms, self.mixing, indices, self.statistics, EPS, node)
        else:  # every edge that enters is "none"
            node.zero_()
        return node

    # ------------------------------------------------------------------ backward

    def backward(self, grad: Tensor, weights_needed: bool) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Gradients of the mixing weights, the weights (None: not needed) and the inputs."""
        plan, spec = self.plan, self.plan.spec
        for source in plan.sources:
            self._pool(source, statistics=False)
        self.coefficients = self.statistics.new_empty(plan.norms, 3, spec.channels)
        self.mixing_grad = torch.zeros_like(self.mixing)
        self.weights_grad = [torch.empty_like(self.weights)] if weights_needed else []
        if not len(grad) and weights_needed:  # an empty batch: nothing will be written
            self.weights_grad[0].zero_()
        self.grads = self._state_grads(grad)
        unread = len(plan.sources)
        for state in reversed(range(spec.states)):
            while unread > 0 and plan.sources[unread - 1].state == state:
                unread -= 1
                self._read_backward(unread)
            if state >= len(self.inputs):
                self._node_backward(state)
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
        source = self.plan.sources[index]
        x, x_grad = self.states[source.state], self.grads[source.state]
        targets = [self.grads[target] for target in source.targets]
        first, second = self.first[index], self.second[index]
        middle: list[Tensor] = []
        if source.second:
            middle = OPS.separable_stage(
                [x], [NONE], self.weights, self.statistics, source.middle_table, EPS, False
            )
            first.update(zip(source.middle, middle, strict=True))
        middle_grads = [torch.empty_like(t) for t in middle]
        shared = (self.weights, self.statistics, self.coefficients)
        if source.second:
            OPS.separable_stage_backward(
                targets, second, middle, source.middle_norms, *shared, source.second_table, EPS, self.training,
                self.weights_grad, middle_grads,
            )  # fmt: skip
        if source.first:
            OPS.separable_stage_backward(
                [*targets, *middle_grads], [first[i] for i in range(source.outputs)], [x], [NONE], *shared, source.first_table, EPS, self.training,
                self.weights_grad, [x_grad],
            )  # fmt: skip
        pooled = self.pooled[index]
        OPS.shared_pooling_backward(
            x,
            source.stride,
            [pooled["average"]] if "average" in pooled else [],
            [pooled["maximum"]] if "maximum" in pooled else [],
            targets,
            source.pooling,
            self.statistics,
            self.coefficients,
            self.mixing,
            x_grad,
        )
        self.first[index], self.second[index] = {}, []

    def _node_backward(self, state: int) -> None:
        tensors, norms, indices = self._terms(state)
        if tensors:
            self._sum_backward(self.grads[state], tensors, norms, indices)

    def _sum_backward(self, grad: Tensor, tensors: list[Tensor], norms: list[int], indices: list[int]) -> None:
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
        """A convolution's bias: without effect where the batch's mean is taken away behind it, else a sum of gradients."""
        channels = self.plan.spec.channels
        for norm, offset in self.plan.biases.items():
            grad = weights_grad[offset : offset + channels]
            if self.training:
                grad.zero_()
            else:
                target = next(
                    node for node, terms in enumerate(self.plan.terms) if any(t.norm == norm for t in terms)
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
