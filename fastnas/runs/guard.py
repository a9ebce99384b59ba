"""Weight steps that are not finite are taken back on the device, and said when the host comes to read them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastnas.bilevel import NotFiniteError, Watch
from fastnas.ops import vector_norm
from fastnas.runs.optimiser import Sgd
from fastnas.runs.ranks import Ranks

# What a step is looked at by, in the order in which it comes about.
QUANTITIES = ("loss", "statistics", "gradient", "weights")


class Guard:
    """Keeps what a run trains as it was before the first step that was not finite.

    Nothing waits for the device and no Python looks at a value, so all of it may be captured in a CUDA graph. From a
    step that was not finite on no step is made, until ``forget``: a host that reads a step later finds the state from
    before that step and can make it again.

    The loss and three norms tell: of the gradient, which the optimiser takes anyway, of the running statistics and of
    the weights behind the step. An optimiser makes no step where its gradient's norm is not finite; if it is the loss
    or a statistic, a NaN is put into the gradient. What the weights' norm tells cannot be taken back: the gradient was
    finite and the step too long.

    Args:
        optimiser: that moves the weights.
        running: (R,) the running statistics, which a forward pass moves.

    Attributes:
        spoilt: () float64 on the device: 0, or NaN since a step was not finite.
    """

    def __init__(self, optimiser: Sgd, running: Tensor) -> None:
        self.optimiser, self.running = optimiser, running
        self.spoilt = torch.zeros((), dtype=torch.float64, device=running.device)
        self._before = torch.empty_like(running)

    def begin(self) -> None:
        """Before the forward pass of a step."""
        self._before.copy_(self.running)

    def move(self, loss: Tensor, grad: Tensor) -> Tensor:
        """The step along ``grad`` (P,), which may be written to; its four ``QUANTITIES``, (4,) float64."""
        seen = self._looked_at(loss)
        grad[:1].mul_(self.spoilt + 1)
        seen += [self.optimiser.move(grad), vector_norm(self.optimiser.w)]
        self.spoilt.add_((seen[2] + seen[3]) * 0)
        return self._end(seen)

    def move_with(
        self,
        ranks: Ranks,
        total: Tensor,
        grad: Tensor,
        loss: Tensor,
        hits: Tensor,
        share: float | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`move` along the mean of all ranks' gradients; its quantities, their mean loss and all hits.

        Args:
            ranks: who meet; where there is one alone, nothing is changed.
            total, grad: what this rank differentiated, and its gradient.
            loss, hits, share: as in ``Ranks.of_step``.
        """
        if ranks.size > 1:
            self.mark(total, grad)
            grad, loss, hits = ranks.of_step(grad, loss, hits, share)
        return self.move(total, grad), loss, hits

    def mark(self, loss: Tensor, numbers: Tensor) -> None:
        """Puts a NaN into ``numbers`` if the loss or a statistic is not finite: so the mean of all ranks' has one."""
        numbers[:1].add_((loss.detach().double() + vector_norm(self.running)) * 0)

    def look(self, loss: Tensor) -> Tensor:
        """A pass that is no step: the first two of the ``QUANTITIES``, (2,) float64."""
        return self._end(self._looked_at(loss))

    def _looked_at(self, loss: Tensor) -> list[Tensor]:
        seen = [loss.detach().double(), vector_norm(self.running)]
        self.spoilt.add_((seen[0] + seen[1]) * 0)  # 0, or NaN
        return seen

    def _end(self, seen: list[Tensor]) -> Tensor:
        self.running.copy_(self.kept(self._before, self.running))
        return torch.stack(seen)

    def kept(self, old: Tensor, new: Tensor) -> Tensor:
        """``new``, or ``old`` if a step was not finite."""
        return torch.where(self.spoilt.isnan(), old, new)

    def spoil(self, where: Tensor) -> None:
        """From now on nothing moves if ``where`` (), bool, is true."""
        self.spoilt.masked_fill_(where, math.nan)

    def forget(self) -> None:
        """Steps are made again: what was not finite has been read."""
        self.spoilt.zero_()

    def report(self, watch: Watch | None, seen: Tensor, account: Callable[[str], str]) -> None:
        """Leaves a step's quantities to ``watch``, which raises ``NotFiniteError`` if they are not finite.

        Args:
            watch: read later; None: it is raised at once, which waits for the device.
            seen: as ``move`` or ``look`` returned it.
            account: makes a phrase of the first of the ``QUANTITIES`` that is not finite.
        """

        def say(numbers: list[float]) -> None:
            bad = [
                name for name, number in zip(QUANTITIES, numbers, strict=False) if not math.isfinite(number)
            ]
            if not bad:
                return
            try:
                phrase = account(bad[0])
            finally:
                self.forget()
            end = "after the step, which was too long" if bad[0] == "weights" else "so the step was not made"
            raise NotFiniteError(f"NaN or infinity in {phrase}, {end}")

        if watch is None:
            say(seen.tolist())
        else:
            watch.add(seen, say)
