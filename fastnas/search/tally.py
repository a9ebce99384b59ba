"""What the steps of an epoch add up to, until its row of metrics is made of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastnas.runs.checkpoint import State
from fastnas.search.step import StepReport


@dataclass
class Tally:
    """The epoch in progress. Tensors stay on the device until somebody reads them.

    Attributes:
        correct: scalar, training images classified right.
        losses: training losses of all weight steps, (n,) each.
        norms: of the hypergradients, (n,) each.
        steps: done so far.
        seen: images or words in them.
        warnings: steps whose estimator noticed something, as far as that was read.
        since: when the epoch began, on the clock of ``time.perf_counter``; time in which no process worked on it does
            not count.
    """

    correct: Tensor
    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    steps: int = 0
    seen: int = 0
    warnings: int = 0
    since: float = field(default_factory=time.perf_counter)

    @classmethod
    def new(cls, device: torch.device) -> Tally:
        """Of an epoch that begins."""
        return cls(torch.zeros((), dtype=torch.int64, device=device))

    def add(self, report: StepReport, count: int) -> None:
        """One more step, on ``count`` images or words."""
        self.losses.append(report.losses)
        self.norms.append(report.hypergradient_norm.reshape(1))
        self.correct += report.correct
        self.steps += 1
        self.seen += count

    @property
    def seconds(self) -> float:
        """Since the epoch began."""
        return time.perf_counter() - self.since

    @property
    def train_loss(self) -> float:
        """Mean of the training losses."""
        return torch.cat(self.losses).mean().item()

    @property
    def hypergradient_norm(self) -> float:
        """Mean norm."""
        return torch.cat(self.norms).mean().item()

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint, with :meth:`numbers`."""
        return {
            "epoch.losses": torch.cat(self.losses),
            "epoch.norms": torch.cat(self.norms),
            "epoch.correct": self.correct,
        }

    def numbers(self) -> dict[str, float]:
        """Those that are no tensors, but for the steps, which are a checkpoint's moment."""
        return {"seen": self.seen, "warnings": self.warnings, "seconds": self.seconds}

    @classmethod
    def of(cls, state: State, device: torch.device) -> Tally:
        """What :meth:`tensors` and :meth:`numbers` gave."""
        numbers: Mapping[str, float] = state.numbers
        losses, norms, correct = (
            state.tensors[f"epoch.{name}"].to(device) for name in ("losses", "norms", "correct")
        )
        return cls(
            correct,
            [losses],
            [norms],
            state.moment.step,
            int(numbers["seen"]),
            int(numbers["warnings"]),
            time.perf_counter() - numbers["seconds"],
        )
