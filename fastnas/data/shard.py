"""Which part of every batch a process of a data-parallel run takes."""

from __future__ import annotations

from typing import NamedTuple


class Shard(NamedTuple):
    """Part ``rank`` of ``size`` parts.

    >>> Shard(1, 4).of(8), Shard(1, 4).of(6, begin=10), Shard().of(8)
    (slice(2, 4, None), slice(11, 13, None), slice(0, 8, None))
    """

    rank: int = 0
    size: int = 1

    def of(self, count: int, begin: int = 0) -> slice:
        """Its part of ``count`` entries from ``begin`` on; all parts have the same length where ``size`` divides it."""
        first, last = (count * part // self.size for part in (self.rank, self.rank + 1))
        return slice(begin + first, begin + last)


WHOLE = Shard()
"""All of a data set, in one process."""
