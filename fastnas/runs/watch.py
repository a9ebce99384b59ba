"""Looking at a run while it goes on."""

from __future__ import annotations

from dataclasses import dataclass

from fastnas.runs.live import LOOPBACK, Live
from fastnas.runs.ranks import Ranks
from fastnas.runs.tensorboard import check_tensorboard


@dataclass(frozen=True)
class WatchConfig:
    """Looking at the run while it goes on. It stays the same to the bit."""

    live: bool = False
    """Show the run's report in a browser while it goes on, at an address that is printed."""
    live_host: str = LOOPBACK
    """Address to listen on; another one than this machine's own loopback shows the run to whoever is told the page's
    address."""
    live_port: int = 0
    """Port to listen on; 0: any that is free."""
    tensorboard: bool = False
    """Write event files for TensorBoard under the run's folder, in tensorboard/."""


def watched(config: WatchConfig, ranks: Ranks) -> Live:
    """What shows a run while it goes on, on the first rank; it listens already.

    Raises:
        FastnasError: nothing can listen there, or there is no TensorBoard.
    """
    check_tensorboard(config.tensorboard and ranks.is_first)
    return Live(config.live and ranks.is_first, config.live_host, config.live_port)
