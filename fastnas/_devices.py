"""The device that a command line names, and its own name."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch

from fastnas.errors import FastnasError


def named_device(name: str) -> torch.device:
    """The device of ``--device name``: auto (a GPU where there is one), cpu, cuda or cuda:N.

    Raises:
        FastnasError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise FastnasError(f"unknown --device {name!r}; known are auto, cpu, cuda and cuda:N") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise FastnasError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise FastnasError(f"--device {name}: PyTorch finds {torch.cuda.device_count()} such devices here")
    return device


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def processor_name() -> str:
    """The CPU's own name for itself."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if match:
            return match[1]
    return platform.processor() or platform.machine()
