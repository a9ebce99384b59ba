"""The state of a data-parallel run in one checkpoint: what all ranks have alike once, what is a rank's own from each.

A tensor of rank r > 0 is called NAME@r there, rank 0's NAME, as in the checkpoint of a process that is alone. A run
goes on with another number of ranks, too: BatchNorm's statistics are then the mean of the saved ones, hidden states
are shared out anew, and ranks that were not there draw their masks from their seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastnas.errors import FastnasError
from fastnas.runs.checkpoint import Moment, State
from fastnas.runs.ranks import Ranks

STATISTICS = "running"
HIDDEN = ("state.", "epoch.hidden")  # one row a stream of text
RANDOM = "rng."


def is_own(name: str) -> bool:
    """Whether a state's tensor is another one on each rank."""
    return name == STATISTICS or name.startswith((*HIDDEN, RANDOM))


def gathered(state: State, ranks: Ranks) -> State:
    """The state of all ranks; a meeting."""
    if ranks.size == 1:
        return state
    tensors = dict(state.tensors)
    for name in filter(is_own, state.tensors):
        for rank, part in enumerate(ranks.stacked(state.tensors[name])):
            tensors[f"{name}@{rank}" if rank else name] = part.clone()
    return replace(state, tensors=tensors)


def handed_out(read: Callable[[], State | None], ranks: Ranks) -> State | None:
    """What ``read()`` gives on the first rank, on all of them; a meeting.

    Raises:
        FastnasError: of ``read``.
    """
    if ranks.size == 1:
        return read()
    found: list[State | None] = [None]

    def described() -> Any:
        state = found[0] = read()
        if state is None:
            return None
        kinds = {
            name: (list(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in state.tensors.items()
        }
        return kinds, list(state.moment), state.rows, state.numbers

    description = ranks.first(described)
    if description is None:
        return None
    kinds, moment, rows, numbers = description
    state = found[0]
    tensors = {
        name: ranks.hand_out_(
            torch.empty(shape, dtype=getattr(torch, kind)) if state is None else state.tensors[name]
        )
        for name, (shape, kind) in kinds.items()
    }
    return State(Moment(*moment), tensors, rows, numbers)


def saved_ranks(state: State) -> int:
    """How many processes a state is of."""
    return 1 + sum(name.startswith("rng.cpu@") for name in state.tensors)


def other_ranks(state: State, ranks: Ranks) -> str | None:
    """What is to be said of a run that goes on with another number of ranks."""
    saved = saved_ranks(state)
    if saved == ranks.size:
        return None
    return (
        f"this run was made by {saved} process{'es' if saved > 1 else ''} and goes on with {ranks.size}: batches are "
        "the same, but BatchNorm and dropout see other shards of them, so it will not end as it would have to the bit"
    )


def own_part(state: State, ranks: Ranks) -> State:
    """This rank's part of what ``gathered`` gave, by the same number of ranks or another one."""
    saved = saved_ranks(state)
    if saved == 1 == ranks.size:
        return state
    tensors = {}
    for name in (name for name in state.tensors if "@" not in name):
        found = [state.tensors.get(f"{name}@{rank}" if rank else name) for rank in range(saved)]
        parts = [part for part in found if part is not None]
        if is_own(name) and len(parts) < saved:
            raise FastnasError(
                f"the checkpoint is of {saved} processes and holds {name} of {len(parts)}: it was edited"
            )
        tensors[name] = _own(name, parts, ranks)
    return replace(state, tensors=tensors)


def _own(name: str, parts: list[Tensor], ranks: Ranks) -> Tensor:
    """Rank 0's, rank 1's, ... ``parts``, in their order, as this rank has them."""
    if not is_own(name):
        return parts[0]
    if len(parts) == ranks.size:
        return parts[ranks.rank]
    if name == STATISTICS:
        return torch.stack(parts).mean(0)
    if name.startswith(HIDDEN):
        streams = torch.cat(parts)
        return streams[ranks.shard.of(len(streams))].clone()
    if ranks.rank < len(parts):
        return parts[ranks.rank]
    return torch.get_rng_state() if name == "rng.cpu" else torch.cuda.get_rng_state()
