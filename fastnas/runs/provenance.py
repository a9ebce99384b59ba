"""Where a run comes from: who wants to know a year later what was typed, and on which machine."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import torch

from fastnas._devices import device_name
from fastnas.build_info import build_info


def provenance(arguments: Sequence[str] | None, device: torch.device) -> dict[str, Any]:
    """What config.json says of a run's beginning, plain values.

    Args:
        arguments: the flags as they were typed; None: the run was begun from Python.
        device: of the run.

    Returns:
        ``arguments``; ``python`` and ``platform``; ``commit`` that the extension was built from; ``device``, its
        name; ``threads`` of torch; ``started``, in UTC.
    """
    return {
        "arguments": None if arguments is None else list(arguments),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "commit": build_info().commit,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
