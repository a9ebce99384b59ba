"""When the state of a run is saved between two of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastnas.runs.interrupt import Interrupt


class Saving:
    """Saves a run every so many seconds, and before a signal ends it.

    Args:
        save: writes a checkpoint of the present state, which is whole between two steps.
        interrupt: the signals.
        seconds: of work that a kill may cost at the most; 0: that of one step.
    """

    def __init__(self, save: Callable[[], None], interrupt: Interrupt, seconds: float) -> None:
        self._save, self.interrupt, self.seconds = save, interrupt, seconds
        self._last = time.monotonic()  # which no clock that is set back moves

    def between_steps(self) -> None:
        """Saves if it is time to; KeyboardInterrupt, behind a checkpoint, if a signal came."""
        pending, due = self.interrupt.meet(time.monotonic() >= self._last + self.seconds)
        if pending or due:
            self.now()
            self.interrupt.check()

    def now(self) -> None:
        """Saves."""
        self._save()
        self._last = time.monotonic()

    @contextmanager
    def state_kept(self) -> Iterator[None]:
        """Around what leaves the run's state alone, such as an evaluation: a signal that ends it saves, too."""
        try:
            yield
        except KeyboardInterrupt:
            self.now()
            raise
