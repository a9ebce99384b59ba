"""What the hypergradients of an epoch noticed, said once an epoch and counted."""

from __future__ import annotations

import sys
from collections import deque

import torch
from tqdm import tqdm

from fastnas.bilevel import NotFiniteError, Watch
from fastnas.errors import FastnasError


class Notices:
    """Reads the watches of an epoch's steps: on a GPU each while the next step runs, so that nothing waits.

    Args:
        epoch: in the sentences.
        device: of the search.
        steps: of the epoch, done before.
        count: of them, those whose estimator noticed something.
        say: whether the first sentence is written on the standard error.

    Attributes:
        count: steps so far whose estimator noticed something.
    """

    def __init__(
        self, epoch: int, device: torch.device, steps: int = 0, count: int = 0, say: bool = True
    ) -> None:
        self.epoch, self.count = epoch, count
        self._behind = 1 if device.type == "cuda" else 0
        self._unread: deque[tuple[int, Watch]] = deque()
        self._steps, self._say = steps, say

    def add(self, watch: Watch) -> None:
        """The next step's.

        Raises:
            FastnasError: an oracle was not finite; the sentence has the step's number.
        """
        self._steps += 1
        self._unread.append((self._steps, watch))
        self._read(self._behind)

    def finish(self) -> int:
        """Reads what is left; raises as ``add``. Returns the count."""
        self._read(0)
        return self.count

    def _read(self, left: int) -> None:
        while len(self._unread) > left:
            step, watch = self._unread.popleft()
            where = f"epoch {self.epoch}, step {step}"
            try:
                sentences = watch.sentences()
            except NotFiniteError as error:
                raise FastnasError(
                    f"{where}: {error}, so alpha was not moved; "
                    "start again with a lower --learning-rate in another --out"
                ) from None
            if sentences and not self.count and self._say:
                tqdm.write(f"{where}: {sentences[0]}", file=sys.stderr)
            self.count += bool(sentences)
