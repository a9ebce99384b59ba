"""The processes of one data-parallel run, as torchrun starts them: who this one is, and what all of them agree on.

A process that is alone (no torchrun) makes no process group, and nothing here costs it anything.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastnas._devices import named_device
from fastnas.data.shard import Shard
from fastnas.errors import FastnasError, RepeatedError

_GOLDEN = 0x9E3779B9  # odd: no two ranks have one seed
TIMEOUT = timedelta(minutes=10)  # of a process that waits for the others
Made = TypeVar("Made")


class LostRankError(FastnasError):
    """Another process of the run has ended, or does not answer."""


class Ranks:
    """The processes of a run, numbered from 0; the first one alone writes and prints.

    Every method from ``sum_`` on is a meeting: all ranks call it at the same point of the run.

    Args:
        rank: of this process.
        size: how many there are; more than one need torch's default process group.
        local: rank among those of this machine, which is the number of its GPU.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0) -> None:
        self.rank, self.size, self.local = rank, size, local

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def shard(self) -> Shard:
        """Its part of every batch."""
        return Shard(self.rank, self.size)

    def device(self, name: str) -> torch.device:
        """The device of ``--device name``; of several GPUs each process takes the one of its number.

        Raises:
            FastnasError: there is no such device, or not enough of them.
        """
        device = named_device(name)
        if self.size == 1 or device.type != "cuda":
            return device
        if device.index is not None:
            raise FastnasError(
                f"--device {name} is one GPU, and torchrun started {self.size} processes; take --device cuda"
            )
        if self.local >= (found := torch.cuda.device_count()):
            raise FastnasError(
                f"torchrun started a process number {self.local} on a machine with {found} GPUs; take a smaller "
                "--nproc-per-node"
            )
        torch.cuda.set_device(self.local)
        return torch.device("cuda", self.local)

    def own_seed(self, seed: int) -> int:
        """Of what is random from here on, so that masks differ by rank; the first rank's is ``seed`` itself.

        Below 2**32, as ``seed`` is: torch's generator on the CPU ignores what lies above.
        """
        return (seed + self.rank * _GOLDEN) % 2**32

    def check_divides(self, batch_size: int) -> None:
        """Raises a FastnasError if a batch has not the same share for every rank."""
        if batch_size % self.size:
            raise FastnasError(
                f"--batch-size {batch_size} is the batch of all {self.size} processes together and cannot be shared "
                f"out evenly; take a multiple of {self.size}"
            )

    def sum_(self, flat: Tensor) -> Tensor:
        """``flat`` becomes the sum of all ranks' ones, the same to the bit on all of them; it is returned."""
        if self.size > 1 and flat.numel():
            with _answered():
                dist.all_reduce(flat)
        return flat

    def average_(self, flat: Tensor) -> Tensor:
        """``flat`` (floating point) becomes the mean of all ranks' ones in one all-reduce; it is returned."""
        return flat if self.size == 1 else self.sum_(flat).div_(self.size)

    @contextmanager
    def averaged(self, flat: Tensor) -> Iterator[None]:
        """Within it ``flat`` is the mean of all ranks' ones, behind it this rank's own again."""
        if self.size == 1:
            yield
            return
        own = flat.clone()
        self.average_(flat)
        try:
            yield
        finally:
            flat.copy_(own)

    def of_step(
        self, grad: Tensor, loss: Tensor, hits: Tensor, share: float | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What a weight step on the whole batch has: mean gradient (P,) and loss, and all hits, in one all-reduce.

        Args:
            grad, loss, hits: of this rank's shard.
            share: of the batch that the shard is; None: as much as every other rank's.
        """
        if self.size == 1:
            return grad, loss, hits
        share = 1 / self.size if share is None else share
        flat = torch.cat([grad, loss.to(grad.dtype)[None]]).mul_(share)
        flat = self.sum_(torch.cat([flat, hits.to(grad.dtype)[None]]))
        return flat[:-2], flat[-2].to(loss.dtype), flat[-1].to(hits.dtype)

    def most(self, numbers: Sequence[int]) -> list[int]:
        """The largest of all ranks' ones, number by number."""
        if self.size == 1:
            return list(numbers)
        found = torch.tensor(numbers)
        with _answered():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.tolist()

    def stacked(self, tensor: Tensor) -> Tensor:
        """All ranks' ``tensor``, (N, ...), on the CPU."""
        mine = tensor.detach().cpu().contiguous()
        if self.size == 1:
            return mine[None]
        found = [torch.empty_like(mine) for _ in range(self.size)]
        with _answered():
            dist.all_gather(found, mine)
        return torch.stack(found)

    def gather(self, value: Any) -> list[Any]:
        """All ranks' ``value``, which JSON knows, in their order."""
        if self.size == 1:
            return [value]
        mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = self.stacked(torch.tensor(len(mine))).tolist()
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(mine)] = mine
        rows = self.stacked(padded)
        return [json.loads(bytes(row[:n].tolist())) for row, n in zip(rows, lengths, strict=True)]

    def hand_out_(self, tensor: Tensor) -> Tensor:
        """``tensor`` becomes the first rank's; it is returned."""
        if self.size > 1 and tensor.numel():
            with _answered():
                dist.broadcast(tensor, src=0)
        return tensor

    def agreed(self, make: Callable[[], Made]) -> Made:
        """``make()`` on every rank; it meets no other rank. A mistake on one of them is raised on all.

        Raises:
            FastnasError: on the first rank that made it; on the others RepeatedError, which is not printed again.
        """
        try:
            made, mistake = make(), None
        except FastnasError as error:
            made, mistake = None, error
        sentences = self.gather(None if mistake is None else str(mistake))
        failed = next((rank for rank, sentence in enumerate(sentences) if sentence is not None), None)
        if failed is None:
            return made  # type: ignore[return-value]
        if failed == self.rank and mistake is not None:
            raise mistake
        raise RepeatedError(sentences[failed]) from None

    def first(self, make: Callable[[], Made]) -> Made:
        """``make()`` on the first rank alone; what it gives, which JSON knows, is every rank's.

        Raises:
            FastnasError: as ``agreed``.
        """
        made = self.agreed(lambda: make() if self.is_first else None)
        found: Made = self.gather(made)[0]
        return found

    def check_alike(self, options: Mapping[str, Any]) -> None:
        """Raises a FastnasError if the ranks were started with different options."""
        if self.size == 1:
            return
        rows = self.gather(dict(options))
        for rank, row in enumerate(rows):
            differing = [name for name in row if row[name] != rows[0][name]]
            if differing:
                mistake = FastnasError if self.is_first else RepeatedError
                raise mistake(
                    f"rank {rank} runs with another configuration than rank 0: it differs in {', '.join(differing)}; "
                    "give all processes the same flags, and --out or --resume a folder that all of them see"
                )

    def check_same(self, tensors: Mapping[str, Tensor], when: str) -> None:
        """Raises a FastnasError if one of the tensors is not the same to the bit on all ranks.

        Args:
            tensors: by name.
            when: for the sentence, after a comma.
        """
        if self.size == 1:
            return
        rows = self.gather({name: _digest(tensor) for name, tensor in tensors.items()})
        for name in tensors:
            other = [rank for rank, row in enumerate(rows) if row[name] != rows[0][name]]
            if other:
                raise FastnasError(
                    f"rank {', '.join(map(str, other))} has other {name} than rank 0, {when}: the processes do not "
                    "compute alike; take machines of one kind, and go on from the newest checkpoint"
                )


ALONE = Ranks()


@cache
def launched() -> Ranks:
    """The processes that torchrun started, by its environment; alone without it. The process group is made once.

    Raises:
        FastnasError: the environment is half torchrun's, or the others cannot be reached.
    """
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        return ALONE
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise FastnasError(
            f"WORLD_SIZE is {size}, but {missing[0]} is not set: start the processes by torchrun, or unset WORLD_SIZE"
        )
    rank = _number("RANK", 0)
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", rank, size, timeout=TIMEOUT)))
        # torchrun's store outlives a restart: without this name a process could find the addresses of dead ones.
        store = dist.PrefixStore(f"restart-{_number('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        raise LostRankError(
            f"rank {rank} of {size} cannot reach the others at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']}: {_reason(error)}"
        ) from None
    atexit.register(_leave)
    return Ranks(rank, size, _number("LOCAL_RANK", 0))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise FastnasError(f"{name} must be a number, as torchrun sets it, got {text!r}")
    return int(text)


def _leave() -> None:
    """Before the interpreter ends: a group that is left open is warned about, and NCCL's may hang."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _answered() -> Iterator[None]:
    """Within it a rank that does not answer is one sentence."""
    try:
        yield
    except RuntimeError as error:
        raise LostRankError(
            "another process of this run has ended or does not answer, so this one ends, too; if it said why, mend "
            f"that, and go on from the newest checkpoint ({_reason(error)})"
        ) from None


def _reason(error: Exception) -> str:
    """The first sentence, without the place in the sources that gloo puts in front."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^\[[^]]*:\d+\] ", "", line).partition(". ")[0].removesuffix(".")


def _digest(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    return hashlib.blake2b(content, digest_size=16).hexdigest()
