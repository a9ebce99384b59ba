"""The fused executor: whole cells as single autograd functions over this library's native ops."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from fastnas.build_info import build_info
from fastnas.errors import FastnasError
from fastnas.ops._distrust import DISTRUSTED, OPS_OF_A_CELL
from fastnas.ops.mixed_sum import mixed_sum
from fastnas.spaces import Cell, Space
from fastnas.supernet.cell_plan import CellPlan, is_fused, is_rectified
from fastnas.supernet.fused_cell import fused_cell
from fastnas.supernet.primitives import MOMENTUM, Noise
from fastnas.supernet.reference import MixedCell, Supernet


class FusedSupernet(Supernet):
    """:class:`Supernet` whose cells run as :func:`fused_cell`; differentiable once.

    Cells with primitives that the native ops do not know, those of discrete networks, and all where one of the ops
    they need is distrusted (``fastnas.doctor.first_use``) or has no kernel for the device and dtype (float64 on CUDA),
    run as in the reference, their nodes by ``fastnas.ops.mixed_sum``.

    Args:
        recompute: keep no cell's activations for the backward pass, compute them again there: a second forward
            pass for the memory of one cell in place of all.

    Attributes:
        takes_bfloat16: cells compute on bfloat16 images if they get them (``torch.autocast``), with float32 weights and
            sums; else they bring them to the weights' dtype first. True on CUDA.
    """

    def __init__(self, space: Space, *, recompute: bool = False, **options: Any) -> None:
        super().__init__(space, **options)
        self.recompute = recompute
        self.takes_bfloat16 = self.weights.flat.device.type == "cuda"
        self._fused: dict[int, FusedCell] = {}
        self._is_plain = False
        self._fuse()

    def _fuse(self) -> None:
        if not self._has_kernels() or DISTRUSTED & OPS_OF_A_CELL:
            return
        rectified = is_rectified(self.space.stages)
        for i, (spec, stage) in enumerate(zip(self.space.stages, self.stages, strict=True)):
            if isinstance(spec, Cell) and is_fused(spec, [rectified[source.stage] for source in spec.inputs]):
                assert isinstance(stage, MixedCell)
                self._fused[i] = FusedCell(self, i, spec, stage)

    def _has_kernels(self) -> bool:
        """Whether the native ops are for the device and dtype of the weights."""
        device, dtype = self.weights.flat.device.type, self.weights.flat.dtype
        if device == "cuda":
            return bool(build_info().cuda) and dtype == torch.float32
        return device == "cpu" and dtype in (torch.float32, torch.float64)

    def __deepcopy__(self, memo: dict[int, Any]) -> FusedSupernet:
        # Fused cells point into the arenas: the copy's are made anew.
        other = memo[id(self)] = self.__class__.__new__(self.__class__)
        other.__dict__.update(copy.deepcopy({**self.__dict__, "_fused": {}}, memo))
        other._fuse()
        return other

    @property
    def has_fused_cells(self) -> bool:
        """Whether any cell is a single autograd function."""
        return bool(self._fused)

    def fused_cell_of(self, index: int) -> FusedCell | None:
        """Stage ``index``, if it is a fused cell."""
        return self._fused.get(index)

    @contextmanager
    def twice_differentiable(self) -> Iterator[None]:
        """Within it cells run as in the reference, on the same weights: differentiate by the arenas' ``tensors``."""
        fused, self._fused = self._fused, {}
        self._is_plain = True
        try:
            yield
        finally:
            self._fused, self._is_plain = fused, False

    def block(self, index: int, x: Tensor) -> Tensor:
        output = super().block(index, x)
        # Once for all cells that read it.
        return output.contiguous(memory_format=torch.channels_last) if output.dim() == 4 else output

    def cell(self, index: int, inputs: Sequence[Tensor], mixing: Tensor | None) -> Tensor:
        if index not in self._fused:
            return super().cell(index, inputs, mixing)
        assert mixing is not None
        if self.training and self.drop_path is not None:
            return self._cell_with_drop_path(index, inputs, mixing)
        # Within torch.autocast images may be bfloat16, which the GPU's kernels take as it is.
        narrow = any(x.dtype == torch.bfloat16 for x in inputs) and self.takes_bfloat16
        dtype = torch.bfloat16 if narrow else self.weights.flat.dtype
        return self._fused[index]([x.to(dtype) for x in inputs], mixing.to(self.weights.flat.dtype))

    def _cell_with_drop_path(self, index: int, inputs: Sequence[Tensor], mixing: Tensor) -> Tensor:
        # The native ops have no weights image by image: plain modules, on views of the fused cell's leaf, which gets
        # the gradient.
        fused = self._fused[index]
        views = {
            name.removeprefix(fused.prefix): fused.view(name)
            for name in self.weights.tensors
            if name.startswith(fused.prefix)
        }
        output: Tensor = functional_call(
            self.stages[index], views, (inputs, mixing, self.node, self.drop_path)
        )
        return output

    def node(self, branches: Sequence[Tensor], weights: Sequence[Tensor] | None) -> Tensor:
        if weights is None or self._is_plain:
            return super().node(branches, weights)
        return mixed_sum(torch.stack(list(weights)), branches)


class FusedCell:
    """One cell: its plan, and its spans of the network's arenas."""

    def __init__(self, net: FusedSupernet, index: int, spec: Cell, module: MixedCell) -> None:
        prefix = f"stages.{index}."
        self.net, self.spec, self.module, self.prefix = net, spec, module, prefix
        self.plan = CellPlan(spec, module, prefix, net.weights, net.running)
        self.weights = net.weights.merge(prefix)
        self.span = net.weights.span(prefix)
        begin, end = net.running.span(prefix)
        self.running = net.running.flat[begin:end].view(self.plan.norms, 2, spec.channels)
        self._shares: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, inputs: Sequence[Tensor], mixing: Tensor) -> Tensor:
        training = self.module.training
        if training:
            self._check_pixels(inputs)
        inputs = self._arguments(inputs)
        statistics = torch.zeros_like(self.running) if training else self._without_biases()
        out = fused_cell(self.plan, inputs, mixing, self.weights, statistics, training, self.net.recompute)
        if training and self.net.statistics_move and len(out):
            self._move_statistics(statistics, inputs, out)
        return out

    def of_duals(self, inputs: Sequence[Tensor], mixing: Tensor, weights: Tensor) -> Tensor:
        """The cell over dual numbers, packed in complex tensors, in training mode; the running statistics stay.

        The gradient of a packed tensor is the dual number whose value is the gradient by its imaginary part.
        """
        self._check_pixels(inputs)
        inputs = self._arguments(inputs)
        statistics = torch.zeros_like(self.running, dtype=mixing.dtype)
        return fused_cell(self.plan, inputs, mixing, weights, statistics, True, self.net.recompute)

    def view(self, name: str) -> Tensor:
        """The weight ``name`` as a view of the cell's leaf."""
        begin = self.net.weights.begin(name) - self.span[0]
        like = self.net.weights[name]
        return self.weights[begin : begin + like.numel()].view(like.shape)

    def _arguments(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """What the plan calls inputs: one for each preprocessing, and what the edges with noise add."""
        distinct, at = [], 0
        for preprocessing in self.plan.preprocessing[: len(self.plan.preprocessing) - len(self.plan.noise)]:
            distinct.append(inputs[at])
            at += len(preprocessing.norms)
        return [*distinct, *self._noise(inputs[0])]

    def _noise(self, x: Tensor) -> list[Tensor]:
        """Noise of the nodes' size, drawn as the reference does; ``x`` is the cell's first input."""
        stride = self.plan.preprocessing[0].stride * self.plan.stride
        state = x[:, :1, ::stride, ::stride].expand(-1, self.spec.channels, -1, -1)
        noise = Noise(1)
        return [noise(state) for _ in self.plan.noise]

    def _check_pixels(self, inputs: Sequence[Tensor]) -> None:
        stride = self.plan.preprocessing[0].stride * self.plan.stride
        pixels = inputs[0][:, 0, ::stride, ::stride].numel()  # of a node, over the batch
        if pixels == 1:
            raise FastnasError(
                f"batch normalisation needs more than 1 value per channel in training, got one image of "
                f"{inputs[0].shape[2]}x{inputs[0].shape[3]} before {self.plan.spec.kind} cells; "
                "take a larger batch or larger images"
            )

    def _biases(self) -> Tensor:
        """(norms, C): the bias of the convolution before each norm, zero where there is none."""
        biases = torch.zeros_like(self.running[:, 0])
        for norm, offset in self.plan.biases.items():
            biases[norm] = self.weights.detach()[offset : offset + biases.shape[1]]
        return biases

    @torch.no_grad()
    def _without_biases(self) -> Tensor:
        """The running statistics of raw branch outputs, which leave biases out."""
        if not self.plan.biases:
            return self.running
        statistics = self.running.clone()
        statistics[:, 0] -= self._biases()
        return statistics

    @torch.no_grad()
    def _move_statistics(self, batch: Tensor, inputs: Sequence[Tensor], out: Tensor) -> None:
        """running <- 0.9 running + 0.1 batch, with the unbiased variance, as nn.BatchNorm2d does."""
        counts = [out[:, 0].numel()] * self.plan.norms
        for x, preprocessing in zip(inputs, self.plan.preprocessing, strict=True):
            for norm in preprocessing.norms if preprocessing.table else ():
                stride = preprocessing.stride
                counts[norm] = x[:, 0, ::stride, ::stride].numel()
        if self.plan.biases:
            batch = batch.clone()
            batch[:, 0] += self._biases()
        self.running.mul_(1 - MOMENTUM).addcmul_(batch, self._share(tuple(counts)))

    def _share(self, counts: tuple[int, ...]) -> Tensor:
        """(norms, 2, 1): the batch's share of each running statistic, by the values per channel of each norm."""
        if counts not in self._shares:
            # Each kept for good: a copy from the host in every step would wait for the device, and a CUDA graph goes
            # on reading the one that it was captured with.
            share = self.running.new_tensor([[MOMENTUM, MOMENTUM * n / max(n - 1, 1)] for n in counts])
            self._shares[counts] = share.unsqueeze(-1)
        return self._shares[counts]
