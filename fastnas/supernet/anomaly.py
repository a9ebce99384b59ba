"""Which operator made the first NaN or infinity of a pass: the output of every one is looked at, both ways.

An operator is what torch's dispatcher calls below autograd, ``aten::convolution_backward`` or this library's
``fastnas::cell``; where it ran is known from the modules and methods of the network that were entered. Each look waits
for the device, and nothing of it may be captured in a CUDA graph or compiled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastnas.bilevel import NotFiniteError
from fastnas.spaces import Cell
from fastnas.supernet.arena import Arena, gradients
from fastnas.supernet.executor import Executor
from fastnas.supernet.recurrent import RecurrentNetwork
from fastnas.supernet.reference import Supernet

WHOLE_CELL = "fastnas::cell"  # and its backward pass: the reference, on the same weights, says more
PLACE = "fastnas place"
RandomState: TypeAlias = Sequence[Tensor]


class AnomalyError(NotFiniteError):
    """Says where the first NaN or infinity of a pass is: in which operator's output, or in what the pass read.

    Attributes:
        operator: as torch's dispatcher calls it; empty if it was none.
    """

    def __init__(self, sentence: str, operator: str = "") -> None:
        super().__init__(sentence)
        self.operator = operator


@contextmanager
def watched(
    net: Executor, loss: Callable[[], Tensor], batch: Mapping[str, Tensor] | None = None
) -> Iterator[None]:
    """Within it every operator's output is looked at.

    Args:
        net: whose passes run within it.
        loss: a forward pass of it, the one that is about to run; where the operator is a whole fused cell, this runs
            once more as the reference does, on the same weights and random numbers, to name a part.
        batch: by name, looked at before with the state of ``net``; None: neither.

    Raises:
        AnomalyError: an output is not finite.
    """
    before = None if batch is None else not_finite({**batch, **_state(net)})
    if before is not None:
        raise AnomalyError(f"before the step in {before}")
    random = random_state(net)
    try:
        with _Looking(net):
            yield
    except AnomalyError as error:
        part = _part_of(net, loss, random) if error.operator.startswith(WHOLE_CELL) else None
        raise part or error from None


@contextmanager
def step_watched(
    wanted: bool, net: Executor, loss: Callable[[], Tensor], batch: Mapping[str, Tensor]
) -> Iterator[None]:
    """:func:`watched`, if it is wanted, around a training step; its error says so.

    Raises:
        NotFiniteError: an output is not finite.
    """
    try:
        with watched(net, loss, batch) if wanted else nullcontext():
            yield
    except AnomalyError as error:
        raise NotFiniteError(f"NaN or infinity {error}, so the step was not made") from None


def account(
    net: Executor,
    loss: Callable[[], Tensor],
    batch: Mapping[str, Tensor],
    random: RandomState,
    quantity: str,
) -> str:
    """What was not finite in a training step that was taken back, by name and by operator: its pass is run once more.

    Args:
        net: with the state from before the step, which it keeps; nothing moves.
        loss: a forward pass of it on that batch.
        batch: what the pass read, by name.
        random: the state of the generators then.
        quantity: what was seen not to be finite: "loss", "statistics" or "gradient"; or "weights", which a step that
            was made has left so.

    Returns:
        A phrase that begins with a tensor.
    """
    if quantity == "weights":
        return f"the weights {part_not_finite(net.weights, net.weights.flat)}"
    before = not_finite({**batch, **_state(net)})
    if before is not None:
        return f"the {quantity}, and before the step in {before}"
    with _as_then(net, random), torch.enable_grad():
        value = loss()
        (grad,) = gradients(value, net.weights)
        statistic = part_not_finite(net.running, net.running.flat)
    name = None if _is_finite(grad) else part_not_finite(net.weights, grad)
    found = {
        "loss": None if _is_finite(value) else "the loss",
        "statistics": None if statistic is None else f"the statistic {statistic}",
        "gradient": None if name is None else f"the gradient of {name}",
    }
    phrase = found[quantity] or next(filter(None, found.values()), None)
    if phrase is None:
        return f"the {quantity}, but not when the step was tried once more (see --detect-anomaly)"
    operator = first_operator(net, loss, random)
    return phrase if operator is None else f"{phrase}, {operator}"


def first_operator(net: Executor, loss: Callable[[], Tensor], random: RandomState) -> str | None:
    """Where the first NaN or infinity of a training pass comes from, forward or backward; None: from no operator."""
    try:
        with _as_then(net, random), torch.enable_grad(), watched(net, loss):
            gradients(loss(), net.weights)
    except AnomalyError as error:
        return str(error)
    return None


@contextmanager
def _as_then(net: Executor, random: RandomState) -> Iterator[None]:
    """Within it ``net`` trains with the random numbers of then; mode, statistics and generators come back."""
    mode, now, running = net.training, random_state(net), net.running.flat.clone()
    net.train()
    try:
        put_back(net, random)
        yield
    finally:
        put_back(net, now)
        net.running.flat.copy_(running)
        net.train(mode)


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first of ``tensors`` that has a NaN or an infinity; waits for the device."""
    return next((name for name, tensor in tensors.items() if not _is_finite(tensor)), None)


def part_not_finite(arena: Arena, vector: Tensor) -> str | None:
    """The name of the first tensor of ``arena`` whose part of ``vector`` (P,) has a NaN or an infinity."""
    return not_finite({name: arena.part(vector, name) for name in arena.tensors})


def random_state(net: Executor) -> RandomState:
    """The states of the generators that a pass of ``net`` may draw from; nothing waits for a GPU."""
    device = net.weights.flat.device
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def put_back(net: Executor, random: RandomState) -> None:
    """The generators are where ``random_state`` found them."""
    torch.set_rng_state(random[0])
    for state in random[1:]:
        torch.cuda.set_rng_state(state, net.weights.flat.device)


def _part_of(net: Executor, loss: Callable[[], Tensor], random: RandomState) -> AnomalyError | None:
    """What the reference's pass finds, forward or backward."""
    for arena in (
        net.weights,
        net.alphas,
    ):  # what a pass wants by alpha alone may come first, and mean nothing here
        if not len(arena):
            continue
        put_back(net, random)
        try:
            with torch.enable_grad(), net.frozen_statistics(), net.twice_differentiable(), _Looking(net):
                torch.autograd.grad(loss(), list(arena.tensors.values()), allow_unused=True)
        except AnomalyError as error:
            return error
    return None


def _state(net: Executor) -> dict[str, Tensor]:
    arenas = {
        "the weights": net.weights,
        "the architecture parameters": net.alphas,
        "the statistic": net.running,
    }
    return {
        f"{kind} {name}": tensor for kind, arena in arenas.items() for name, tensor in arena.tensors.items()
    }


def _is_finite(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.isfinite().all())


class _Looking(TorchDispatchMode):
    """Looks at every operator's output, in ``_Places`` of one network."""

    def __init__(self, net: Executor) -> None:
        super().__init__()
        self.places, self._entered = _Places(net), ExitStack()

    def __enter__(self) -> Any:
        self._entered.enter_context(self.places.followed())
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._entered.close()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        if _computes(operator) and not all(
            _is_finite(t) for t in tree_leaves(result) if isinstance(t, Tensor)
        ):
            # An operator writes into memory of its own, or of somebody's who will: what is there before is nothing.
            node = torch._C._current_autograd_node()
            name, way = operator._schema.name, "forward" if node is None else "backward"
            raise AnomalyError(f"first in the output of {name} in {self.places.now(node)} ({way} pass)", name)
        return result


def _computes(operator: Any) -> bool:
    """Whether an operator's output is a result: no fresh memory, and no view, which may be one of such memory."""
    schema = operator._schema
    if "empty" in schema.name:
        return False
    aliases = [returned.alias_info for returned in schema.returns]
    return not any(alias is not None and not alias.is_write for alias in aliases)


class _Places:
    """Where in a network a pass is: modules by their names, methods of the executor by what they make.

    In a backward pass it is where the node of autograd's graph was made, which every node is marked with.
    """

    def __init__(self, net: Executor) -> None:
        self.net = net
        self._stack: list[tuple[str, Counter[str]]] = [("the loss", Counter())]

    def now(self, node: Any) -> str:
        """The innermost place; of a backward pass's ``node``, if it is one."""
        return self._stack[-1][0] if node is None else node.metadata.get(PLACE, self._stack[0][0])

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Within it places are known."""
        handles = [
            handle
            for name, module in self.net.named_modules()
            for handle in (
                module.register_forward_pre_hook(
                    lambda _, given, name=name: self._enter(self._named(name), given)
                ),
                module.register_forward_hook(lambda _, given, made: self._leave(made)),
            )
        ]
        try:
            with self._methods():
                yield
        finally:
            for handle in handles:
                handle.remove()
            del self._stack[1:]  # what an error left

    @contextmanager
    def _methods(self) -> Iterator[None]:
        """The executor's methods, which are no modules: stages of a fused network, time steps and nodes of text."""
        net = self.net
        if isinstance(net, RecurrentNetwork):
            labels = {
                "cell": lambda: self._counted("time step"),
                "node": lambda: self._counted("node"),
                "_highway": lambda: self._counted("node"),
            }
        else:
            labels = {name: lambda index, *_: self._named(f"stages.{index}") for name in ("block", "cell")}
        for name, label in labels.items():
            setattr(net, name, self._following(getattr(net, name), label))
        try:
            yield
        finally:
            for name in labels:
                delattr(net, name)  # the class has it

    def _following(self, method: Callable[..., Any], label: Callable[..., str]) -> Callable[..., Any]:
        of_text = isinstance(self.net, RecurrentNetwork)

        @wraps(method)
        def followed(*arguments: Any) -> Any:
            self._enter(label() if of_text else label(*arguments), arguments)
            made = method(*arguments)
            self._leave(made)
            return made

        return followed

    def _counted(self, part: str) -> str:
        """``part`` and its number within the place, from 1."""
        place, counts = self._stack[-1]
        counts[part] += 1
        within = f"{place}, " if len(self._stack) > 2 else ""  # the network itself needs no name
        return f"{within}{part} {counts[part]}"

    def _named(self, name: str) -> str:
        """A module, with its edge's states if it is on one."""
        if not name:
            return "the network"
        if isinstance(self.net, RecurrentNetwork):
            return f"{self._stack[-1][0]}, {name}" if len(self._stack) > 2 else name
        parts = name.split(".")
        assert isinstance(self.net, Supernet)
        spec = self.net.space.stages[int(parts[1])] if parts[0] == "stages" and len(parts) > 1 else None
        if isinstance(spec, Cell) and parts[2:3] == ["edges"] and len(parts) > 3:
            edge = spec.edges[int(parts[3])]
            return f"{name} (edge {edge.source} -> {edge.target})"
        return name

    def _enter(self, place: str, given: Any) -> None:
        _mark(given, self._stack[-1][0])
        self._stack.append((place, Counter()))

    def _leave(self, made: Any) -> None:
        _mark(made, self._stack.pop()[0])


def _mark(tensors: Any, place: str) -> None:
    """Gives all nodes of autograd's graph behind ``tensors`` that have no place this one."""
    nodes: list[Any] = [t.grad_fn for t in tree_leaves(tensors) if isinstance(t, Tensor)]
    while nodes:
        node = nodes.pop()
        if node is None or PLACE in node.metadata:
            continue
        node.metadata[PLACE] = place
        nodes += [before for before, _ in node.next_functions]
