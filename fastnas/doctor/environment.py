"""Where fastnas runs: versions, processor, GPU."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from fastnas._devices import processor_name
from fastnas._version import __version__
from fastnas.build_info import build_info


@dataclass(frozen=True)
class Environment:
    """``str()`` is a report of one line per field that there is.

    Attributes:
        device: name of the GPU, or of the processor where that is what is checked.
        capability: the GPU's compute capability as "9.0", "" on a CPU.
        memory_bytes: of the GPU; 0 on a CPU.
        driver: the GPU's driver, "" on a CPU, "unknown" if nothing tells.
        processor: name of the CPU.
        cpu_capability: level of the CPU kernels in force.
        threads: of torch's pool.
        python, torch, triton, fastnas: versions; "" what is not installed.
        torch_cuda: CUDA that torch was built with, "" without.
        commit: that the extension was built from.
        system: operating system and machine.
    """

    device: str
    capability: str
    memory_bytes: int
    driver: str
    processor: str
    cpu_capability: str
    threads: int
    python: str
    torch: str
    torch_cuda: str
    triton: str
    fastnas: str
    commit: str
    system: str

    def __str__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.capability:
            values["memory_bytes"] = f"{self.memory_bytes:,}"
        else:  # no GPU: the device is the processor
            for name in ("capability", "memory_bytes", "driver", "processor"):
                del values[name]
        return "\n".join(f"{name:<19} {value or 'none'}" for name, value in values.items())


def environment(device: torch.device) -> Environment:
    """What ``device`` and the software around it are."""
    capability, memory, driver, name = "", 0, "", processor_name()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory
        capability = f"{properties.major}.{properties.minor}"
        driver = driver_version()
    build = build_info()
    return Environment(
        device=name,
        capability=capability,
        memory_bytes=memory,
        driver=driver,
        processor=processor_name(),
        cpu_capability=build.cpu_capability,
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=str(torch.__version__),
        torch_cuda=torch.version.cuda or "",
        triton=_installed("triton"),
        fastnas=__version__,
        commit=build.commit,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
    )


def driver_version() -> str:
    """The NVIDIA driver's version, "unknown" if neither the kernel nor nvidia-smi tells."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
        if match := re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)", text):
            return match[1]
    except OSError:
        pass
    if program := shutil.which("nvidia-smi"):
        command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
            return done.stdout.split()[0]
        except (OSError, subprocess.SubprocessError, IndexError):
            pass
    return "unknown"


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
