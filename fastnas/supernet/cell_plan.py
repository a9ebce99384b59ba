"""The plan of a fused cell: which native call does which branch, as data made once from the description and the
modules that hold the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastnas.ops.separable_stage import DENSE, Branch
from fastnas.spaces import Cell, Input, Pool, Stem
from fastnas.spaces.description import Stage
from fastnas.supernet.arena import Arena
from fastnas.supernet.mixing import first_weights
from fastnas.supernet.primitives import BatchNorm, FactorizedReduce
from fastnas.supernet.reference import MixedCell

SEPARABLE = {"sep_conv_3x3": 3, "sep_conv_5x5": 5, "sep_conv_7x7": 7}
DILATED = {"dil_conv_3x3": 3, "dil_conv_5x5": 5}
CONVOLUTIONS = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}
RECTIFIED = {"conv1x1-bn-relu": 1, "conv3x3-bn-relu": 3}
POOLS = {"avg_pool_3x3": "average", "max_pool_3x3": "maximum", "maxpool3x3": "maximum"}
FUSED = {"none", "skip_connect", "noise", *SEPARABLE, *DILATED, *CONVOLUTIONS, *RECTIFIED, *POOLS}

NONE = -1  # no norm, no weight
CALLS = ("state", "first", "second", "average", "maximum")  # in the order of csrc/cell/plan.h


def is_fused(spec: Cell, rectified: Sequence[bool]) -> bool:
    """Whether the fused cell can execute it: a supernet's, of primitives that the native ops know.

    They put a ReLU before each convolution. Where the space has none there, what the convolution reads must not be
    negative: then the ReLU changes neither a value nor any weight's gradient (docs/decisions.md, 62).

    Args:
        spec: the cell.
        rectified: whether each of its inputs has no negative value (:func:`is_rectified`).
    """
    names = {name for edge in spec.edges for name in edge.primitives}
    projects = {source.preprocess for source in spec.inputs}
    known = spec.is_mixed and names <= FUSED
    unstrided = {"nor_conv_3x3", *RECTIFIED}
    strided = {name for edge in spec.edges if edge.stride > 1 for name in edge.primitives}
    if not known or strided & unstrided:
        return False
    if not names & set(RECTIFIED) and "conv_bn_relu" not in projects:
        return not spec.affine
    # The kernels have affine norms in front of a ReLU alone.
    alone = names <= {"none", "skip_connect", *RECTIFIED, *POOLS} and projects <= {"identity", "conv_bn_relu"}
    return alone and not strided and spec.affine and not spec.normalise_pools and all(rectified)


def is_rectified(stages: Sequence[Stage]) -> list[bool]:
    """Whether each stage's output has no negative value, whatever its weights."""
    found: list[bool] = []
    for spec in stages:
        if isinstance(spec, Stem):
            found.append(spec.rectified)
        elif isinstance(spec, Pool):
            found.append(found[-1])
        elif isinstance(spec, Cell):
            names = {name for edge in spec.edges for name in edge.primitives}
            keeps = names <= {"none", "skip_connect", *RECTIFIED, *POOLS} and not spec.normalise_pools
            strided = any(edge.stride > 1 for edge in spec.edges)
            inputs = [
                s.preprocess == "conv_bn_relu" or (s.preprocess == "identity" and found[s.stage])
                for s in spec.inputs
            ]
            found.append(keeps and not strided and all(inputs))
        else:
            found.append(False)
    return found


@dataclass(frozen=True)
class Term:
    """A summand of a node: an output of a call of its edge group, and its factors.

    Attributes:
        call: "first", "second", "average", "maximum" or "state".
        index: of the call's output.
        norm: row of the statistics that normalises it, or NONE.
        weight: index of its mixing weight.
    """

    call: str
    index: int
    norm: int
    weight: int


@dataclass(eq=False)
class Pooling:
    """The pooled branches and skip-connections of all edges that read one state with one stride.

    Attributes:
        kinds: whether average and maximum are wanted, and the norms behind them, of all edges.
        table: a row for each of the group's targets, which is shared_pooling_backward's.
    """

    kinds: dict[str, bool] = field(default_factory=lambda: {"average": False, "maximum": False})
    norms: dict[str, list[int]] = field(default_factory=lambda: {"average": [], "maximum": []})
    table: list[int] = field(default_factory=list)

    def numbers(self) -> list[int]:
        """What csrc/cell/plan.cpp reads."""
        norms = [number for kind in self.norms.values() for number in _list(kind)]
        return [*self.kinds.values(), *norms, *self.table]


@dataclass(eq=False)
class EdgeGroup:
    """All edges that read one state with one stride; they go through the native ops together.

    ``first`` reads the state itself; its outputs ``middle`` are the first halves of separable convolutions, which
    ``second`` goes on with; its other outputs, ``ends``, enter a node. ``targets`` are the nodes whose gradients
    the branches get, in the order that ``Branch.grad`` counts them; behind them, for ``first``, those of ``middle``, of
    which there are ``separable``, and what the ReLUs behind ``rectified`` outputs let through. ``terms`` are the
    summands of each target.
    """

    state: int
    stride: int
    edges: list[int]
    targets: list[int]
    separable: int
    pooling: Pooling = field(default_factory=Pooling)
    first: list[Branch] = field(default_factory=list)
    middle: list[int] = field(default_factory=list)
    middle_norms: list[int] = field(default_factory=list)
    second: list[Branch] = field(default_factory=list)
    terms: list[list[Term]] = field(default_factory=list)
    outputs: int = 0  # of `first`
    rectified: int = 0  # of these

    def numbers(self) -> list[int]:
        """What csrc/cell/plan.cpp reads."""
        numbers = [self.state, self.stride, self.outputs]
        for items in (self.targets, _flat(self.first), self.middle, self.middle_norms, _flat(self.second)):
            numbers += _list(items)
        for terms in self.terms:
            numbers += [len(terms)]
            for term in terms:
                numbers += [CALLS.index(term.call), term.index, term.norm, term.weight]
        return [*numbers, *self.pooling.numbers()]


@dataclass(eq=False)
class Preprocessing:
    """ReLU, 1x1 convolution(s) and BatchNorm of a stage's output; an empty table: the output as it is.

    Attributes:
        stage: whose output it is.
        norms: of the states that come of it, one each.
        table: the convolutions' branches, which count the states as outputs.
        stride: of the convolutions.
        has_node_size: the output taken as it is has the size of the cell's nodes, not that of its other inputs.
    """

    stage: int
    norms: list[int]
    table: list[int]
    stride: int
    has_node_size: bool = False


class CellPlan:
    """What ``fused_cell`` runs.

    Args:
        spec: the cell.
        module: holds its weights and BatchNorms.
        prefix: of its names in the arenas.
        weights, running: the network's arenas, in which each cell is one span.

    Attributes:
        preprocessing: of each input of the fused cell: of each of the cell's, those that ``conv_bn_relu`` makes of one
            stage being one.
        groups: of edges, by ascending state.
        noise: the edges with noise, in the order in which the reference draws it. The cell gets it as further inputs,
            behind its own, each of which is added to one node; they count as states, before the nodes.
        empty: nodes that no branch enters.
        biases: of convolutions with a bias, by the norm behind them: offsets in the weights. The normalisation takes
            a bias away again, so it is added to the running means alone.
        stride: from the cell's inputs to its nodes.
        norms: number of BatchNorms; each has ``spec.channels`` channels.
        affine: of each of them with a scale and shift, behind which a ReLU is: the offset of both in the weights.
        numbers: all of it as a vector of int64, which the native op reads (csrc/cell/plan.h).
    """

    def __init__(
        self,
        spec: Cell,
        module: MixedCell,
        prefix: str,
        weights: Arena,
        running: Arena,
    ) -> None:
        self.spec = spec
        self._weight_offsets = _offsets(weights, prefix)
        self._norm_offsets = _offsets(running, prefix)
        begin, end = running.span(prefix)
        # Nodes have one size: that of the inputs, divided by the stride of the edges out of them.
        self.stride = max((e.stride for e in spec.edges if e.source < len(spec.inputs)), default=1)
        self.norms = (end - begin) // (2 * spec.channels)
        self.affine = [NONE] * self.norms
        self.preprocessing: list[Preprocessing] = []
        for source, pre in zip(spec.inputs, module.preprocess, strict=True):
            self._add_preprocessing(source, pre)
        by_target = sorted(range(len(spec.edges)), key=lambda row: spec.edges[row].target)
        self.noise = [row for row in by_target if "noise" in spec.edges[row].primitives]
        self.preprocessing += [Preprocessing(NONE, [NONE], [], 1, has_node_size=True)] * len(self.noise)
        self.biases: dict[int, int] = {}
        self.groups: list[EdgeGroup] = []
        for state, stride in sorted({(edge.source, edge.stride) for edge in spec.edges}):
            rows = [i for i, e in enumerate(spec.edges) if (e.source, e.stride) == (state, stride)]
            targets = [self._state(spec.edges[row].target) for row in rows]
            separable = sum(name in SEPARABLE for row in rows for name in spec.edges[row].primitives)
            self.groups.append(EdgeGroup(self._state(state), stride, rows, targets, separable))
        for group in self.groups:
            for row in group.edges:
                primitives = module.edges[row]
                assert isinstance(primitives, nn.ModuleDict)
                self._add_edge(group, row, primitives)
        self.groups += [self._noise_group(len(spec.inputs) + k, row) for k, row in enumerate(self.noise)]
        self.groups.sort(key=lambda group: group.state)
        entered = {t for g in self.groups for t, terms in zip(g.targets, g.terms, strict=True) if terms}
        nodes = map(self._state, range(len(spec.inputs), spec.states))
        self.empty = [node for node in nodes if node not in entered]
        begin, end = weights.span(prefix)
        self.numbers = torch.tensor(self._numbers(end - begin))

    def _add_preprocessing(self, source: Input, module: nn.Module) -> None:
        if isinstance(module, nn.Identity):
            self.preprocessing.append(Preprocessing(source.stage, [NONE], [], 1))
        elif isinstance(module, FactorizedReduce):
            norm = self._norm(module.norm)
            table = [n for branch in self._reduction(module, 0, norm, 0) for n in branch]
            self.preprocessing.append(Preprocessing(source.stage, [norm], table, 2))
        elif source.preprocess == "conv_bn_relu":
            self._add_projection(source.stage, *module.children())
        else:
            _, convolution, behind = module.children()
            norm = self._norm(behind)
            branch = self._convolution(convolution, 1, 0, norm, 0)
            self.preprocessing.append(Preprocessing(source.stage, [norm], [*branch], 1))

    def _add_projection(self, stage: int, convolution: nn.Module, behind: nn.Module, _: nn.Module) -> None:
        """All of a stage's projections that follow each other read it once."""
        last = self.preprocessing[-1] if self.preprocessing else None
        if (
            last is None
            or last.stage != stage
            or any(norm == NONE or self.affine[norm] == NONE for norm in last.norms)
        ):
            last = Preprocessing(stage, [], [], 1)
            self.preprocessing.append(last)
        norm, state = self._rectified_norm(behind), len(last.norms)
        last.table += self._convolution(convolution, 1, state, norm, state)
        last.norms.append(norm)

    def _state(self, state: int) -> int:
        """The number in the plan of a state of the cell."""
        return state if state < len(self.spec.inputs) else state + len(self.noise)

    def _noise_group(self, state: int, row: int) -> EdgeGroup:
        """The noise of an edge, as a skip-connection from the input that it comes in as."""
        edge = self.spec.edges[row]
        weight = first_weights(self.spec)[row] + edge.primitives.index("noise")
        group = EdgeGroup(state, 1, [row], [self._state(edge.target)], 0)
        group.terms.append([Term("state", 0, NONE, weight)])
        group.pooling.table += [NONE, NONE, NONE, NONE, weight]
        return group

    def _add_edge(self, group: EdgeGroup, row: int, primitives: nn.ModuleDict) -> None:
        edge = self.spec.edges[row]
        grad = group.targets.index(self._state(edge.target))
        pooled = {"average": (NONE, NONE), "maximum": (NONE, NONE)}
        skip = NONE
        terms: list[Term] = []
        group.terms.append(terms)

        def end(norm: int, weight: int) -> None:
            terms.append(Term("first", group.outputs, norm, weight))
            group.outputs += 1

        first = first_weights(self.spec)[row]
        for name, module in primitives.items():
            if name == "noise":  # an input of its own
                continue
            weight = first + edge.primitives.index(name)
            layers = list(module.children())
            if name in POOLS:
                kind = POOLS[name]
                norm = self._norm(layers[1]) if self.spec.normalise_pools else NONE
                group.pooling.kinds[kind] = True
                group.pooling.norms[kind] += [norm] if norm != NONE else []
                pooled[kind] = (norm, weight)
                terms.append(Term(kind, 0, norm, weight))
            elif isinstance(module, FactorizedReduce):
                norm = self._norm(module.norm)
                group.first += self._reduction(module, group.outputs, norm, grad)
                end(norm, weight)
            elif name == "skip_connect":
                skip = weight
                terms.append(Term("state", 0, NONE, weight))
            elif name in CONVOLUTIONS:
                norm = self._norm(layers[2])
                group.first.append(self._convolution(layers[1], edge.stride, group.outputs, norm, grad))
                end(norm, weight)
            elif name in RECTIFIED:
                norm = self._rectified_norm(layers[1])
                passed = len(group.edges) + group.separable + group.rectified
                group.first.append(self._convolution(layers[0], edge.stride, group.outputs, norm, passed))
                group.rectified += 1
                end(norm, weight)
            elif name in DILATED:
                norm = self._norm(layers[3])
                group.first.append(self._stage(layers[1:3], 0, edge.stride, group.outputs, norm, grad))
                end(norm, weight)
            else:
                middle, middle_norm, norm = len(group.middle), self._norm(layers[3]), self._norm(layers[7])
                middle_grad = len(group.edges) + middle
                group.first.append(
                    self._stage(layers[1:3], 0, edge.stride, group.outputs, middle_norm, middle_grad)
                )
                group.second.append(self._stage(layers[5:7], middle, 1, middle, norm, grad))
                terms.append(Term("second", middle, norm, weight))
                group.middle.append(group.outputs)
                group.middle_norms.append(middle_norm)
                group.outputs += 1
        group.pooling.table += [*pooled["average"], *pooled["maximum"], skip]

    def _stage(
        self, convolutions: list[nn.Module], source: int, stride: int, out: int, norm: int, grad: int
    ) -> Branch:
        depthwise, pointwise = convolutions
        assert isinstance(depthwise, nn.Conv2d)
        assert isinstance(pointwise, nn.Conv2d)
        kernel, dilation = depthwise.kernel_size[0], depthwise.dilation[0]
        offsets = self._at(depthwise.weight), self._at(pointwise.weight)
        return Branch(
            source, kernel, dilation, stride, 0, *offsets, len(pointwise.weight), out, 0, norm, grad
        )

    def _convolution(self, convolution: nn.Module, stride: int, out: int, norm: int, grad: int) -> Branch:
        assert isinstance(convolution, nn.Conv2d)
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

    def _numbers(self, weights: int) -> list[int]:
        """The plan as csrc/cell/plan.cpp reads it."""
        spec = self.spec
        mixing = sum(len(edge.primitives) for edge in spec.edges)
        numbers = [spec.channels, self.stride, self._state(spec.states), self.norms, weights, mixing]
        numbers += [*_list(self.affine), len(self.preprocessing)]
        for preprocessing in self.preprocessing:
            late = int(preprocessing.has_node_size)
            numbers += [*_list(preprocessing.norms), *_list(preprocessing.table), late]
        numbers += [*_list([self._state(s) for s in spec.output]), *_list(self.empty), len(self.biases)]
        for norm, offset in self.biases.items():
            numbers += [norm, offset, self._target_of(norm)]
        return [*numbers, len(self.groups), *(n for group in self.groups for n in group.numbers())]

    def _target_of(self, norm: int) -> int:
        """The node that a normalised branch enters."""
        return next(
            node
            for group in self.groups
            for node, terms in zip(group.targets, group.terms, strict=True)
            if any(term.norm == norm for term in terms)
        )

    def _at(self, weight: Tensor) -> int:
        return self._weight_offsets[id(weight)]

    def _rectified_norm(self, norm: nn.Module) -> int:
        """The row of an affine norm with a ReLU behind it, whose scale and shift are entered."""
        row = self._norm(norm)
        assert isinstance(norm, BatchNorm)
        assert norm.weight is not None
        assert norm.bias is not None
        scale = self._at(norm.weight)
        assert self._at(norm.bias) == scale + len(norm.weight)  # the kernels read them as one
        self.affine[row] = scale
        return row

    def _norm(self, norm: nn.Module) -> int:
        assert isinstance(norm, BatchNorm)
        return self._norm_offsets[id(norm.running_mean)] // (2 * self.spec.channels)


def _list(items: Sequence[int]) -> list[int]:
    return [len(items), *items]


def _flat(branches: Sequence[Branch]) -> list[int]:
    return [number for branch in branches for number in branch]


def _offsets(arena: Arena, prefix: str) -> dict[int, int]:
    """Where each tensor under ``prefix`` begins in their common span, by identity."""
    begin, _ = arena.span(prefix)
    return {id(t): arena.begin(name) - begin for name, t in arena.tensors.items() if name.startswith(prefix)}
