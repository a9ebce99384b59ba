"""Ctrl-C during a run: a flag that is read between steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether Ctrl-C has been pressed.

    Python raises KeyboardInterrupt wherever it happens to be, and drops it where exceptions are ignored: in a
    ``__del__``, in a callback from C. The flag stays. A press is also raised at once, as Python does it, until
    ``defer`` is called, and after it while an earlier press is pending: a step that hangs can be broken off.
    """

    def __init__(self) -> None:
        self.pending = False
        self._deferred = False

    def defer(self) -> None:
        """From now on the first press waits for ``check``."""
        self.check()
        self._deferred = True

    def check(self) -> None:
        """Raises KeyboardInterrupt if Ctrl-C has been pressed."""
        if self.pending:
            raise KeyboardInterrupt

    def press(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGINT."""
        again, self.pending = self.pending, True
        if again or not self._deferred:
            signal.default_int_handler(number, frame)


@contextmanager
def interrupt_flag() -> Iterator[Interrupt]:
    """Within it Ctrl-C sets the flag that it yields.

    Signals are the main thread's: in another one nothing changes, nor where SIGINT is ignored or the caller
    handles it.
    """
    interrupt = Interrupt()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield interrupt
        return
    try:
        signal.signal(signal.SIGINT, interrupt.press)
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
    interrupt.check()  # a press behind the last check
