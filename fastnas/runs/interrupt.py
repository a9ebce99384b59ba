"""Ctrl-C and SIGTERM during a run: a flag that is read between steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from fastnas.errors import Terminated
from fastnas.runs.ranks import ALONE, Ranks


class Interrupt:
    """Whether a signal has asked the run to end, Ctrl-C or SIGTERM.

    Python raises KeyboardInterrupt wherever it happens to be, and drops it where exceptions are ignored: in a
    ``__del__``, in a callback from C. The flag stays. A signal is also raised at once, as Python does it, until
    ``defer`` is called. After that a second Ctrl-C is: a step that hangs can be broken off. A SIGTERM never is, since
    who sends one (a scheduler, torchrun) may send several.

    Attributes:
        pending: the first signal that came; 0: none.
        ranks: the processes of a data-parallel run, which end after the same step.
    """

    def __init__(self) -> None:
        self.pending = 0
        self.ranks = ALONE
        self._deferred = False

    def defer(self, ranks: Ranks = ALONE) -> None:
        """From now on the first signal waits for ``check``, which all ``ranks`` call together."""
        _end(self.pending)
        self._deferred, self.ranks = True, ranks

    def meet(self, flag: bool = False) -> tuple[int, bool]:
        """The signal that came, and whether the flag is set: on this rank or on another one."""
        pending, found = self.ranks.most([self.pending, int(flag)])
        return pending, bool(found)

    def check(self) -> None:
        """Raises KeyboardInterrupt, or Terminated, which is one, if a signal came."""
        _end(self.meet()[0])

    def press(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals."""
        again, self.pending = self.pending, self.pending or number
        if not self._deferred or (again and number == signal.SIGINT):
            _end(self.pending)


def _end(pending: int) -> None:
    if pending == signal.SIGTERM:
        raise Terminated
    if pending:
        raise KeyboardInterrupt


def stopped(stop: KeyboardInterrupt, sentence: str) -> KeyboardInterrupt:
    """``stop`` with something to say."""
    return type(stop)(sentence)


# What Python does by itself at each signal, unless somebody handles it.
_USUAL: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@contextmanager
def interrupt_flag() -> Iterator[Interrupt]:
    """Within it Ctrl-C and SIGTERM set the flag that it yields.

    Signals are the main thread's: in another one nothing changes, nor for a signal that is ignored or that the caller
    handles.
    """
    interrupt = Interrupt()
    ours = threading.current_thread() is threading.main_thread()
    taken = [number for number, usual in _USUAL.items() if ours and signal.getsignal(number) is usual]
    try:
        for number in taken:
            signal.signal(number, interrupt.press)
        yield interrupt
    finally:
        for number in taken:
            signal.signal(number, _USUAL[number])
    interrupt.check()  # a signal behind the last check
