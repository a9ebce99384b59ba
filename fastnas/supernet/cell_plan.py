"""The plan of a fused cell: which native call does which branch, as data made once from the description and the
modules that hold the weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from fastnas.ops.separable_stage import DENSE, Branch
from fastnas.spaces import Cell, Edge
from fastnas.supernet.arena import Arena
from fastnas.supernet.primitives import BatchNorm, FactorizedReduce
from fastnas.supernet.reference import MixedCell

SEPARABLE = {"sep_conv_3x3": 3, "sep_conv_5x5": 5, "sep_conv_7x7": 7}
DILATED = {"dil_conv_3x3": 3, "dil_conv_5x5": 5}
CONVOLUTIONS = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}
POOLS = {"avg_pool_3x3": "average", "max_pool_3x3": "maximum"}
FUSED = {"none", "skip_connect", *SEPARABLE, *DILATED, *CONVOLUTIONS, *POOLS}

NONE = -1  # no norm, no weight


def is_fused(spec: Cell) -> bool:
    """Whether the fused cell can execute it: a supernet's, of primitives that the native ops know."""
    return (
        spec.alpha is not None
        and not spec.affine
        and all(set(edge.primitives) <= FUSED for edge in spec.edges)
        and all("nor_conv_3x3" not in edge.primitives or edge.stride == 1 for edge in spec.edges)
    )


@dataclass(frozen=True)
class Term:
    """A summand of a node: the ``index``-th output of a call for source plan ``source``, and its factors.

    Attributes:
        call: "first", "second", "average", "maximum" or "state".
        norm: row of the statistics that normalises it, or NONE.
        weight: index of its mixing weight.
    """

    source: int
    call: str
    index: int
    norm: int
    weight: int


@dataclass
class SourcePlan:
    """All branches that read one state with one stride.

    ``first`` reads the state itself; its outputs ``middle`` are the first halves of separable convolutions, which
    ``second`` goes on with; its other outputs, ``ends``, enter a node. ``targets`` are the nodes whose gradients the branches get, in the order that
    ``Branch.grad`` counts them; behind them, for ``first``, those of ``middle``.
    """

    state: int
    stride: int
    targets: list[int]
    first: list[Branch] = field(default_factory=list)
    middle: list[int] = field(default_factory=list)
    middle_norms: list[int] = field(default_factory=list)
    second: list[Branch] = field(default_factory=list)
    norms: dict[str, list[int]] = field(default_factory=lambda: {"average": [], "maximum": []})
    pooled: dict[str, bool] = field(default_factory=lambda: {"average": False, "maximum": False})
    pooling: list[int] = field(default_factory=list)  # shared_pooling_backward's table

    def __post_init__(self) -> None:
        self.outputs = 0  # of `first`

    def finish(self) -> None:
        """Writes the branches down as the ops' tables."""
        self.first_table = [number for branch in self.first for number in branch]
        self.second_table = [number for branch in self.second for number in branch]
        self.ends = [i for i in range(self.outputs) if i not in self.middle]
        middle = [branch for branch in self.first if branch.out in self.middle]
        self.middle_table = [n for i, branch in enumerate(middle) for n in branch._replace(out=i)]


@dataclass(frozen=True)
class Preprocessing:
    """ReLU, 1x1 convolution(s) and BatchNorm of a cell's input; an empty table: the input as it is."""

    table: list[int]
    norm: int
    stride: int


class CellPlan:
    """What ``fused_cell`` runs.

    Args:
        spec: the cell.
        module: holds its weights and BatchNorms.
        prefix: of its names in the arenas.
        weights, running: the network's arenas, in which each cell is one span.

    Attributes:
        preprocessing: of each input.
        sources: what reads each state, by ascending state.
        terms: of each node (states behind the inputs), in the order of the edges.
        biases: of convolutions with a bias, by the norm behind them: offsets in the weights. The normalisation takes
            a bias away again, so it is added to the running means alone.
        stride: from the cell's inputs to its nodes.
        norms: number of BatchNorms; each has ``spec.channels`` channels.
    """

    def __init__(self, spec: Cell, module: MixedCell, prefix: str, weights: Arena, running: Arena) -> None:
        self.spec = spec
        self._weight_offsets = _offsets(weights, prefix)
        self._norm_offsets = _offsets(running, prefix)
        begin, end = running.span(prefix)
        # Nodes have one size: that of the inputs, divided by the stride of the edges out of them.
        self.stride = max((e.stride for e in spec.edges if e.source < len(spec.inputs)), default=1)
        self.norms = (end - begin) // (2 * spec.channels)
        self.preprocessing = [self._preprocessing(pre) for pre in module.preprocess]
        self.sources = [
            SourcePlan(state, stride, [e.target for e in spec.edges if (e.source, e.stride) == (state, stride)])
            for state, stride in sorted({(edge.source, edge.stride) for edge in spec.edges})
        ]
        self.biases: dict[int, int] = {}
        self.terms: list[list[Term]] = [[] for _ in range(spec.states)]
        for row, (edge, primitives) in enumerate(zip(spec.edges, module.edges, strict=True)):
            assert isinstance(primitives, nn.ModuleDict)
            self._add_edge(row, edge, primitives)
        for source in self.sources:
            source.finish()

    def _preprocessing(self, module: nn.Module) -> Preprocessing:
        if isinstance(module, nn.Identity):
            return Preprocessing([], NONE, 1)
        if isinstance(module, FactorizedReduce):
            norm = self._norm(module.norm)
            table = [n for branch in self._reduction(module, 0, norm, 0) for n in branch]
            return Preprocessing(table, norm, 2)
        assert isinstance(module, nn.Sequential)
        norm = self._norm(module[2])
        convolution = module[1].weight
        branch = Branch(0, 0, 1, 1, 0, 0, self._at(convolution), len(convolution), 0, 0, norm, 0)
        return Preprocessing([*branch], norm, 1)

    def _add_edge(self, row: int, edge: Edge, primitives: nn.ModuleDict) -> None:
        index, plan = next(
            (i, p) for i, p in enumerate(self.sources) if (p.state, p.stride) == (edge.source, edge.stride)
        )
        grad = plan.targets.index(edge.target)
        pooling = {"average": (NONE, NONE), "maximum": (NONE, NONE)}
        skip = NONE
        terms = self.terms[edge.target]
        for name, module in primitives.items():
            weight = row * len(edge.primitives) + edge.primitives.index(name)
            if name in POOLS:
                kind = POOLS[name]
                norm = self._norm(module[1]) if self.spec.normalise_pools else NONE
                plan.pooled[kind] = True
                plan.norms[kind] += [norm] if norm != NONE else []
                pooling[kind] = (norm, weight)
                terms.append(Term(index, kind, 0, norm, weight))
            elif name == "skip_connect" and edge.stride == 1:
                skip = weight
                terms.append(Term(index, "state", 0, NONE, weight))
            elif name == "skip_connect":
                norm = self._norm(module.norm)
                terms.append(Term(index, "first", plan.outputs, norm, weight))
                plan.first += self._reduction(module, plan.outputs, norm, grad)
                plan.outputs += 1
            elif name in CONVOLUTIONS:
                norm = self._norm(module[2])
                terms.append(Term(index, "first", plan.outputs, norm, weight))
                plan.first.append(self._convolution(module[1], edge.stride, plan.outputs, norm, grad))
                plan.outputs += 1
            elif name in DILATED:
                norm = self._norm(module[3])
                terms.append(Term(index, "first", plan.outputs, norm, weight))
                plan.first.append(self._stage(module[1:3], 0, edge.stride, plan.outputs, norm, grad))
                plan.outputs += 1
            else:
                norm = self._norm(module[7])
                terms.append(Term(index, "second", len(plan.second), norm, weight))
                middle = len(plan.middle)
                plan.first.append(
                    self._stage(
                        module[1:3], 0, edge.stride, plan.outputs, self._norm(module[3]), len(plan.targets) + middle
                    )
                )
                plan.second.append(self._stage(module[5:7], middle, 1, middle, norm, grad))
                plan.middle.append(plan.outputs)
                plan.middle_norms.append(self._norm(module[3]))
                plan.outputs += 1
        plan.pooling += [*pooling["average"], *pooling["maximum"], skip]

    def _stage(
        self, convolutions: nn.Sequential, source: int, stride: int, out: int, norm: int, grad: int
    ) -> Branch:
        depthwise, pointwise = convolutions
        assert isinstance(depthwise, nn.Conv2d)
        kernel, dilation = depthwise.kernel_size[0], depthwise.dilation[0]
        offsets = self._at(depthwise.weight), self._at(pointwise.weight)
        return Branch(source, kernel, dilation, stride, 0, *offsets, len(pointwise.weight), out, 0, norm, grad)

    def _convolution(self, convolution: nn.Conv2d, stride: int, out: int, norm: int, grad: int) -> Branch:
        kernel, weight = convolution.kernel_size[0], self._at(convolution.weight)
        if convolution.bias is not None:
            self.biases[norm] = self._at(convolution.bias)
        kernel, depthwise = (0, 0) if kernel == 1 else (kernel, DENSE)
        channels = len(convolution.weight)
        return Branch(0, kernel, 1, stride, 0, depthwise, weight, channels, out, 0, norm, grad)

    def _reduction(self, module: FactorizedReduce, out: int, norm: int, grad: int) -> list[Branch]:
        even, odd = module.even.weight, module.odd.weight
        return [
            Branch(0, 0, 1, 2, 0, 0, self._at(even), len(even), out, 0, norm, grad),
            Branch(0, 0, 1, 2, 1, 0, self._at(odd), len(odd), out, len(even), norm, grad),
        ]

    def _at(self, weight: Tensor) -> int:
        return self._weight_offsets[id(weight)]

    def _norm(self, norm: BatchNorm) -> int:
        return self._norm_offsets[id(norm.running_mean)] // (2 * self.spec.channels)


def _offsets(arena: Arena, prefix: str) -> dict[int, int]:
    """Where each tensor under ``prefix`` begins in their common span, by identity."""
    begin, _ = arena.span(prefix)
    return {id(t): arena.begin(name) - begin for name, t in arena.tensors.items() if name.startswith(prefix)}
