"""One flat buffer for all tensors of a kind: a perturbation, a restore, an optimiser step is then one kernel."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Arena:
    """Tensors of a network as views into one flat, contiguous buffer.

    The given leaves stay the very objects that the network's modules hold; only their storage moves. Writing to
    ``flat`` is writing to all of them, and the other way round. A deep copy is the same over the tensors' copies;
    its leaves are these, none merged.

    Args:
        tensors: leaves by name; their order is the layout.
        dtype: of the buffer; the tensors are converted.
        device: of the buffer; the tensors move there.

    Attributes:
        flat: (P,) the buffer.
        tensors: the leaves by name, each now a view into ``flat``.
        leaves: what gradients are taken of, in the order of ``flat``: the tensors themselves, or in place of
            neighbours one leaf for all of them (``merge``).

    >>> layer = torch.nn.Linear(2, 3)
    >>> arena = Arena(dict(layer.named_parameters()))
    >>> arena.flat.zero_().shape, layer.bias.tolist()
    (torch.Size([9]), [0.0, 0.0, 0.0])
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.tensors = dict(tensors)
        self.flat = torch.empty(sum(t.numel() for t in self.tensors.values()), dtype=dtype, device=device)
        self._begin: dict[str, int] = {}
        end = 0
        for name, tensor in self.tensors.items():
            self._begin[name] = end
            end += tensor.numel()
            self._view(name).copy_(tensor.detach())
            tensor.data = self._view(name)
        self.leaves = list(self.tensors.values())

    def _view(self, name: str) -> Tensor:
        return self.part(self.flat, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Arena:
        # By `memo` the modules' copies hold the copied tensors, and optimisers' copies the copied buffer.
        other = memo[id(self)] = Arena.__new__(Arena)
        other.flat = copy.deepcopy(self.flat, memo)
        other.tensors = copy.deepcopy(self.tensors, memo)
        other._begin = dict(self._begin)
        for name, tensor in other.tensors.items():
            tensor.data = other._view(name)  # a parameter is copied without what it is a view into
        other.leaves = list(other.tensors.values())
        return other

    def __len__(self) -> int:
        return self.flat.numel()

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def part(self, vector: Tensor, name: str) -> Tensor:
        """What of ``vector`` (P,) belongs to the tensor ``name``, in its shape."""
        tensor, begin = self.tensors[name], self._begin[name]
        return vector[begin : begin + tensor.numel()].view(tensor.shape)

    def span(self, prefix: str) -> tuple[int, int]:
        """Where in ``flat`` the tensors lie whose names begin with ``prefix``; they must be neighbours."""
        names = [name for name in self.tensors if name.startswith(prefix)]
        if not names:
            return 0, 0
        begin = self._begin[names[0]]
        end = self._begin[names[-1]] + self.tensors[names[-1]].numel()
        assert end - begin == sum(self.tensors[name].numel() for name in names), f"{prefix} is not one span"
        return begin, end

    def begin(self, name: str) -> int:
        """Where in ``flat`` the tensor ``name`` begins."""
        return self._begin[name]

    def merge(self, prefix: str) -> Tensor:
        """One leaf, flat, in place of all tensors whose names begin with ``prefix``: what a fused op takes.

        ``backward()`` on a graph of the leaf still fills the tensors' own ``.grad``.
        """
        begin, end = self.span(prefix)
        leaf = self.flat[begin:end].detach().requires_grad_()
        members = [tensor for name, tensor in self.tensors.items() if name.startswith(prefix)]
        sizes = [member.numel() for member in members]

        def hand_on(leaf: Tensor) -> None:
            assert leaf.grad is not None
            for member, part in zip(members, leaf.grad.split(sizes), strict=True):
                grad = part.view(member.shape)
                member.grad = grad if member.grad is None else member.grad + grad
            leaf.grad = None

        leaf.register_post_accumulate_grad_hook(hand_on)
        identities = {id(member) for member in members}
        first = next(i for i, kept in enumerate(self.leaves) if id(kept) in identities)
        self.leaves = [kept for kept in self.leaves if id(kept) not in identities]
        self.leaves.insert(first, leaf)
        return leaf

    @contextmanager
    def constant(self) -> Iterator[None]:
        """Within it no gradients of the leaves are recorded: their part of a backward pass is left out."""
        wanted = [leaf for leaf in self.leaves if leaf.requires_grad]
        for leaf in wanted:
            leaf.requires_grad_(False)
        try:
            yield
        finally:
            for leaf in wanted:
                leaf.requires_grad_()


def gradients(loss: Tensor, *arenas: Arena) -> tuple[Tensor, ...]:
    """d loss / d arena, flat, for each arena, by one backward pass; zeros where the loss does not depend on a leaf.

    Args:
        loss: scalar with a graph to the arenas' leaves; the graph is freed.

    Returns:
        One new tensor (P,) an arena, in its dtype.
    """
    return joined(gradient_parts(loss, *arenas), *arenas)


def gradient_parts(loss: Tensor, *arenas: Arena) -> tuple[Tensor, ...]:
    """:func:`gradients` leaf by leaf, as autograd leaves them: they may share memory, and expand it."""
    leaves = [leaf for arena in arenas for leaf in arena.leaves]
    return torch.autograd.grad(loss, leaves, materialize_grads=True)


def joined(parts: Sequence[Tensor], *arenas: Arena) -> tuple[Tensor, ...]:
    """One new flat tensor (P,) an arena out of the parts of its leaves, in one pass."""
    rest = iter(parts)
    return tuple(torch.cat([next(rest).reshape(-1) for _ in arena.leaves]) for arena in arenas)
