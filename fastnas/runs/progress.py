"""How far a run is: a bar where a line can be written over, a plain line now and then where not."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from tqdm import tqdm
from tqdm.std import Bar

from fastnas._terminal import is_terminal, laid_out, size_of

SECONDS, SHARE = 30.0, 0.1  # between two plain lines there are at least so many, and so much of an epoch
NARROW, BAR, FRAME = 49, (8, 24), 4  # columns: with less there is no bar; of a bar; of what is around it


class Progress(tqdm):
    """A bar of ``tqdm`` that fits its terminal, on the standard error; plain lines where that is none.

    What does not fit is left out, the last value first. Plain lines are for pipes and logs: without control characters,
    and few.

    Args:
        total: of the run, in units.
        size: of an epoch.
        initial: done before.
        unit: what is counted.
        shown: whether anything is.
    """

    def __init__(
        self, total: int, size: int, *, initial: int = 0, unit: str = "it", shown: bool = True
    ) -> None:
        self.values: dict[str, str] = {}
        self._name, self._unit, self._plain = "", unit, shown and not is_terminal(sys.stderr)
        self._seen, self._size, self._whole, self._initial = initial, size, total, initial
        self._begin = self._said_at = time.monotonic()
        self._said, self._due = initial, False
        super().__init__(
            total=total,
            initial=initial,
            unit=unit,
            dynamic_ncols=True,
            smoothing=0,  # the mean is what foretells an end; it has evaluations in it, too
            leave=False,
            disable=self._plain or not shown,
        )

    def update(self, n: float | None = 1) -> bool | None:
        """Moves on; whether something is shown, which is when ``set_postfix`` is worth its cost."""
        self._seen += int(n or 0)
        if not self._plain:
            return super().update(n)
        now = time.monotonic()
        self._due = now - self._said_at >= SECONDS and self._seen - self._said >= SHARE * self._size
        return self._due

    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
        """What goes on from here, such as "epoch 3/50"."""
        self._name = desc or ""
        if refresh and not self._behind_tee():
            self.refresh()

    def set_postfix(
        self, ordered_dict: Mapping[str, object] | None = None, refresh: bool | None = True, **values: Any
    ) -> None:
        """What else is shown, by name."""
        self.values = {name: str(value) for name, value in {**(ordered_dict or {}), **values}.items()}
        if refresh:
            self.refresh()

    def refresh(self, *arguments: Any, **options: Any) -> None:
        """Draws the bar anew, or writes a plain line if one is due."""
        if not self._plain:
            super().refresh(*arguments, **options)
        elif self._due:
            self._wait()
            say(self._line(), sys.stderr)

    def tell(self, *groups: list[str]) -> None:
        """Writes phrases on the standard output, in lines that fit; the next plain line waits anew."""
        text = laid_out(groups, size_of(sys.stdout).columns)
        if self._behind_tee():
            self.clear()
            print(text, flush=True)
            self.last_print_t = self._time()  # the next bar is drawn a moment later
        elif self._plain or not self.disable:
            say(text)
        self._wait()

    def _behind_tee(self) -> bool:
        """Whether lines go elsewhere, as with ``| tee log``: they come back to a line that is to be empty."""
        return not self.disable and not is_terminal(sys.stdout)

    def _wait(self) -> None:
        self._said, self._said_at, self._due = self._seen, time.monotonic(), False

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """Draws over the line. By tqdm, blanks as many as the last one had would overflow a narrower terminal."""

        def draw(text: str) -> None:
            file.write(f"\r{text}\x1b[K")
            file.flush()

        return draw

    def __str__(self) -> str:
        drawn = self.format_dict
        width = (drawn["ncols"] or 80) - 1  # some terminals begin a new line behind their last column
        share = min(self._seen / self._whole, 1.0) if self._whole else 1.0
        name, phrases = self._name, [f"{100 * share:.0f}%", *self._phrases()]
        if len(name) + 6 > width:
            name = name.rpartition(" ")[2]
        least, most = BAR if width >= NARROW else (0, 0)

        def whole(*bar: str) -> str:
            return "  ".join([*([name] if name else []), *bar, *phrases])

        while len(phrases) > 1 and len(whole()) + (least and least + FRAME) > width:
            phrases.pop()
        columns = min(width - len(whole()) - FRAME, most)
        if not columns >= least > 0:
            return whole()[:width]
        return whole(f"|{format(Bar(share, columns, charset=Bar.ASCII if drawn['ascii'] else Bar.UTF))}|")

    def _line(self) -> str:
        """What a plain line says; the share is that of the epoch."""
        share = ((self._seen - 1) % self._size + 1) / self._size
        return "  ".join([f"{self._name}, {100 * share:.0f}%", *self._phrases()])

    def _phrases(self) -> list[str]:
        """Time left, values and speed, what matters most first."""
        elapsed, done = time.monotonic() - self._begin, self._seen - self._initial
        values = [f"{name} {value}" for name, value in self.values.items()]
        if done <= 0 or elapsed <= 0:
            return values
        rate = done / elapsed
        left = tqdm.format_interval((self._whole - self._seen) / rate)
        speed = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
        return [f"{left} left", *values, f"{speed} {self._unit}/s"]


def say(text: str, stream: TextIO | None = None) -> None:
    """Writes lines that a bar in progress does not disturb, at once: nobody waits for a pipe's buffer."""
    stream = stream or sys.stdout
    tqdm.write(text, file=stream)
    stream.flush()
