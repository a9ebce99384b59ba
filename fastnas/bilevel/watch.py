"""What an estimator noticed on its way, left on the device until someone reads it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Sentence: TypeAlias = Callable[[list[float]], str | None]

# Along what H does not see V_k stays as it is, and rounding alone moves its norm.
ROUNDING = 1e-6


class HypergradientWarning(UserWarning):
    """An estimator met what its theory excludes and says how it went on: divergence or negative curvature."""


class Watch:
    """Collects observations of one hypergradient and says the remarkable ones as warnings.

    An estimator that is given no watch makes one and reads it before it returns, which waits for the device. A search
    gives one to each hypergradient and reads it once, at the end of the step.

    Example:
        >>> from fastnas.bilevel import idarts, toy_problem
        >>> watch = Watch()
        >>> idarts(toy_problem(), gamma=2.0, neumann_terms=3, watch=watch).round(decimals=6)  # H = 2
        tensor([14.], dtype=torch.float64)
        >>> print(watch.sentences()[0].split(": ")[1])
        |V_k| grew 3 times from V_0 to V_1
    """

    def __init__(self) -> None:
        self._seen: list[tuple[int, Sentence]] = []  # how many numbers, and what makes a sentence of them
        self._numbers: list[Tensor] = []
        self._said: list[str] = []
        self._arrived: torch.cuda.Event | None = None

    def add(self, numbers: Tensor, sentence: Sentence) -> None:
        """Keep ``numbers`` (n,) on their device; ``sentence`` makes a warning of them, or None, when they are read."""
        self._seen.append((len(numbers), sentence))
        self._numbers.append(numbers.double())

    def say(self, sentence: str) -> None:
        """Keep what is known on the host already."""
        self._said.append(sentence)

    def send(self) -> None:
        """Starts the numbers' way to the host: ``sentences`` then waits for them, not for what was launched since."""
        if not self._numbers:
            return
        numbers = torch.cat(self._numbers)
        if numbers.is_cuda:
            there = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            there.copy_(numbers, non_blocking=True)
            self._arrived, numbers = torch.cuda.Event(), there
            self._arrived.record(torch.cuda.current_stream())
        self._numbers = [numbers]

    def sentences(self) -> list[str]:
        """What was remarkable; waits for the device if there is anything to read.

        Raises:
            NotFiniteError: ``Inspected`` left numbers here, and they are not.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        numbers = torch.cat(self._numbers).tolist() if self._numbers else []
        said, seen = self._said, self._seen
        self._seen, self._numbers, self._said, self._arrived = [], [], [], None
        for length, sentence in seen:
            found, numbers = sentence(numbers[:length]), numbers[length:]
            said += [found] if found else []
        return said

    def warn(self) -> None:
        """Every sentence as a ``HypergradientWarning``."""
        for sentence in self.sentences():
            warnings.warn(sentence, HypergradientWarning, stacklevel=3)


class Growth:
    """Follows |V_k| of a Neumann series: from the first growth on, terms are left out.

    Since V_k+1 = (I - gamma H) V_k, growth needs an eigenvalue of H that is more than 2/gamma, or less than 0.

    Args:
        where: the estimator's name.
        gamma: step of the series.
        norm: |V_0|, shape (), float64, on the device.
        damping: what H is here has so much on its diagonal; None: the estimator takes none.
    """

    def __init__(self, where: str, gamma: float | Tensor, norm: Tensor, damping: float | None = None) -> None:
        self._where, self._norm, self._damping = where, norm, damping
        self._gamma = torch.as_tensor(gamma, dtype=torch.float64).to(norm.device)
        self.grew = torch.zeros((), dtype=torch.bool, device=norm.device)
        self._rows: list[Tensor] = []

    def step(self, norm: Tensor, hessian_norm: Tensor) -> Tensor:
        """Whether |V_k+1| = ``norm``, or one before it, is more than the norm before; ``hessian_norm`` is |H V_k|."""
        gamma = self._gamma
        # 2 gamma <V, H V> from the three norms: |V'|^2 = |V|^2 - 2 gamma <V, H V> + gamma^2 |H V|^2.
        curvature = self._norm**2 + (gamma * hessian_norm) ** 2 - norm**2
        self._rows.append(torch.stack([self._norm, norm, hessian_norm, curvature, gamma]))
        # What is not finite is no growth: it stays in the sum, where it is seen.
        self.grew = self.grew | ((norm > self._norm * (1 + ROUNDING)) & norm.isfinite())
        self._norm = norm
        return self.grew

    def report(self, watch: Watch) -> None:
        """Leaves what was seen to ``watch``."""
        if self._rows:
            watch.add(torch.stack(self._rows).flatten(), self._sentence)

    def _sentence(self, numbers: list[float]) -> str | None:
        rows = [numbers[i : i + 5] for i in range(0, len(numbers), 5)]
        grown = [
            k
            for k, row in enumerate(rows)
            if row[1] > row[0] * (1 + ROUNDING) and all(map(math.isfinite, row))
        ]
        if not grown:
            return None
        # The later, the more of V_k lies along the eigenvalue that makes it grow.
        k, last = grown[0], grown[-1]
        before, _, hessian_norm, curvature, gamma = rows[last]
        # The moments of H along V: without negative eigenvalues the second is at most lambda_max times the first.
        first, second = curvature / (2 * gamma * before**2), (hessian_norm / before) ** 2
        if first > 0:
            cause = (
                f"unless H has negative eigenvalues, gamma = {gamma:.3g} is more than 2/lambda_max, lambda_max being "
                f"at least {second / first:.3g}"
            )
            advice = f"a gamma below {2 * first / second:.2g}"
        else:
            cause = f"the curvature along V_{last} is negative, {first:.3g}"
            estimator = "neumann with " if self._damping is None else ""
            advice = f"{estimator}damping above {(self._damping or 0) - first:.2g}"
        growth = f"|V_k| grew {_times(rows[k][1] / rows[k][0])} times from V_{k} to V_{k + 1}"
        return (
            f"{self._where}: {growth}: {cause}; the series was cut behind V_{k}; take {advice}, fewer terms or exact "
            "products"
        )


def _times(ratio: float) -> str:
    """A ratio > 1, with as many digits as tell it from 1."""
    return f"{ratio:.3g}" if ratio >= 1.005 else f"{ratio:.{1 - math.floor(math.log10(ratio - 1))}f}"
