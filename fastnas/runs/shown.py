"""What a command line takes beside a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from fastnas.runs.options import Options


@dataclass(frozen=True)
class TerminalConfig:
    """What is shown; the folder of the run does not say it."""

    quiet: bool = False
    """Print nothing but what the run has come to, and warnings and errors on the standard error."""


@dataclass(frozen=True)
class Shown(Options):
    """In front of a configuration: the same, and what of the run is shown."""

    terminal: TerminalConfig = field(default_factory=TerminalConfig)

    def to_options(self) -> dict[str, Any]:
        """Those of the run: what is shown is none of them."""
        ours = {option.name for option in fields(TerminalConfig)}
        return {name: value for name, value in super().to_options().items() if name not in ours}
