"""One flat buffer for all tensors of a kind: a perturbation, a restore, an optimiser step is then one kernel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Arena:
    """Tensors of a network as views into one flat, contiguous buffer.

    The given leaves stay the very objects that the network's modules hold; only their storage moves. Writing to
    ``flat`` is writing to all of them, and the other way round.

    Args:
        tensors: leaves by name; their order is the layout.
        dtype: of the buffer; the tensors are converted.
        device: of the buffer; the tensors move there.

    Attributes:
        flat: (P,) the buffer.
        tensors: the leaves by name, each now a view into ``flat``.

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
        sizes = [tensor.numel() for tensor in self.tensors.values()]
        self.flat = torch.empty(sum(sizes), dtype=dtype, device=device)
        for tensor, part in zip(self.tensors.values(), self.flat.split(sizes), strict=True):
            view = part.view(tensor.shape)
            view.copy_(tensor.detach())
            tensor.data = view

    def __len__(self) -> int:
        return self.flat.numel()

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


def gradients(loss: Tensor, *arenas: Arena) -> tuple[Tensor, ...]:
    """d loss / d arena, flat, for each arena, by one backward pass; zeros where the loss does not depend on a leaf.

    Args:
        loss: scalar with a graph to the arenas' leaves; the graph is freed.

    Returns:
        One new tensor (P,) an arena, in its dtype.
    """
    leaves = [leaf for arena in arenas for leaf in arena.tensors.values()]
    parts = iter(torch.autograd.grad(loss, leaves, materialize_grads=True))
    return tuple(torch.cat([next(parts).reshape(-1) for _ in arena.tensors]) for arena in arenas)
