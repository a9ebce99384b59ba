"""How a cell stands among all cells of a table, by one number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet16": "ImageNet16-120"}
"""The data sets of the tables, and their names in print."""
SPLITS = {"val": "validation", "test": "test"}
"""The parts of each on which accuracies were measured."""


@dataclass(frozen=True)
class Standing:
    """One accuracy of a cell among those of all cells of its table.

    Attributes:
        accuracy: in percent, the mean of the table's training runs; to four decimals, as the regret.
        rank: 1 is the best; cells of the same accuracy have the same rank.
        regret: the best accuracy of the table on this split minus this one, in percentage points.
    """

    accuracy: float
    rank: int
    regret: float


def rounded(value: float) -> float:
    """A number of a table, whose float32 has seven digits, to four decimals."""
    return round(float(value), 4)


class Ranking:
    """The accuracies of all cells on one split, ready to be asked for standings.

    Args:
        accuracies: (cells,) float, in percent.

    >>> Ranking(np.array([80.0, 90.0, 80.0, 85.0])).standing(2)
    Standing(accuracy=80.0, rank=3, regret=10.0)
    """

    def __init__(self, accuracies: np.ndarray) -> None:
        self._accuracies = accuracies
        self._descending = np.sort(-accuracies)

    def standing(self, index: int) -> Standing:
        """The standing of cell ``index``."""
        accuracy, best = self._accuracies[index], -self._descending[0]
        rank = int(np.searchsorted(self._descending, -accuracy)) + 1
        return Standing(rounded(accuracy), rank, rounded(float(best) - float(accuracy)))

    def top(self, count: int) -> list[int]:
        """The ``count`` best cells, best first; of equal ones that with the lower index."""
        return np.argsort(-self._accuracies, kind="stable")[:count].tolist()
