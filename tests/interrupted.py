"""Ctrl-C between two epochs of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def interrupted_in(owner: Any, number: int, match: str | None = None) -> Iterator[None]:
    """Within it Ctrl-C comes as epoch ``number`` begins, and what runs there must end by it.

    Args:
        owner: the class whose ``epoch(number, ...)`` is called: a search's or a trainer's.
        number: of the epoch, from 1.
        match: what the KeyboardInterrupt says, a pattern.
    """
    epoch = owner.epoch

    def interrupted(self, at, *others):
        if at == number:
            raise KeyboardInterrupt
        return epoch(self, at, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, "epoch", interrupted)
        with pytest.raises(KeyboardInterrupt, match=match):
            yield
