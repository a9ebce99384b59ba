"""When to end a search, by the curvature of the validation loss in alpha."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from fastnas.errors import FastnasError


@dataclass(frozen=True)
class Stop:
    """That a search should end, and why.

    Attributes:
        epoch: whose architecture to take.
        at: the newest epoch that was observed.
        before, after: means of the eigenvalue around ``epoch``, and over the newest window.
    """

    epoch: int
    at: int
    before: float
    after: float

    def __str__(self) -> str:
        return (
            f"stopped early after epoch {self.at}: the largest eigenvalue of d2L2/dalpha2 rose from {self.before:.3g} "
            f"to {self.after:.3g} (means of several epochs); the architecture is that of epoch {self.epoch}"
        )


class EarlyStop:
    """The early stopping of RobustDARTS, one eigenvalue at a time.

        stop as soon as mean(i - k) / mean(i) < 0.75, and return the architecture of epoch i - k

    where mean(i) is the largest eigenvalue of d2L2/dalpha2, averaged over k = 5 epochs around i (Zela et al.,
    "Understanding and Robustifying Differentiable Architecture Search", ICLR 2020, section 4.3): a fast rise goes
    before architectures that do worse as discrete networks. So the newest window is that around i = newest - 2. Where
    the eigenvalue is not observed after every epoch, observations count in place of epochs.

    At first the eigenvalue rises because the weights learn. So, as in the authors' code, the search does not go back to
    one of the first ten epochs (docs/decisions.md, 53).

    A mean that is not positive is no dominant curvature: with mean(i) <= 0 the search goes on, and a rise from
    mean(i - k) <= 0 to mean(i) > 0 ends it, as the rule reads when multiplied out, mean(i - k) < 0.75 mean(i).

    Args:
        window: k, of the means and between them; odd.
        ratio: in (0, 1].
        first: the earliest epoch to go back to, > 0; epochs count from 1.

    Raises:
        FastnasError: an argument is out of range.

    Example:
        >>> rule, series = EarlyStop(first=1), [1, 1, 1, 1, 1, 1, 2, 2, 2, 2]
        >>> [rule.observe(epoch, value) for epoch, value in enumerate(series, 1)][-1]
        Stop(epoch=3, at=10, before=1.0, after=1.8)
    """

    def __init__(self, *, window: int = 5, ratio: float = 0.75, first: int = 11) -> None:
        if type(window) is not int or window < 1 or window % 2 == 0:
            raise FastnasError(f"EarlyStop: window must be an odd integer >= 1, got {window!r}")
        if not 0 < ratio <= 1:
            raise FastnasError(f"EarlyStop: ratio must be a number in (0, 1], got {ratio!r}")
        if type(first) is not int or first < 1:
            raise FastnasError(f"EarlyStop: first must be an integer >= 1, got {first!r}")
        self.window, self.ratio, self.first = window, ratio, first
        self._observed: deque[tuple[int, float]] = deque(maxlen=2 * window)

    def earliest(self, every: int) -> int:
        """The first epoch after which it can stop, with observations after every so many epochs."""
        behind = (
            2 * self.window - self.window // 2 - 1
        )  # observations since the epoch that it would go back to
        return every * max(2 * self.window, behind + -(-self.first // every))

    def observe(self, epoch: int, eigenvalue: float) -> Stop | None:
        """Takes the eigenvalue after ``epoch``, a later one than before; None: go on.

        Raises:
            FastnasError: the epoch is no later one, or the eigenvalue is no finite number.
        """
        if self._observed and epoch <= self._observed[-1][0]:
            raise FastnasError(f"EarlyStop: epoch {epoch} comes after epoch {self._observed[-1][0]}")
        if (
            isinstance(eigenvalue, bool)
            or not isinstance(eigenvalue, int | float)
            or not math.isfinite(eigenvalue)
        ):
            raise FastnasError(
                f"EarlyStop: the eigenvalue of epoch {epoch} is no finite number: {eigenvalue!r}"
            )
        self._observed.append((epoch, float(eigenvalue)))
        epochs, values = zip(*self._observed, strict=True)
        if len(values) < 2 * self.window or epochs[self.window // 2] < self.first:
            return None
        before, after = (
            math.fsum(part) / self.window for part in (values[: self.window], values[self.window :])
        )
        if after > 0 and before < self.ratio * after:
            return Stop(epochs[self.window // 2], epoch, before, after)
        return None
