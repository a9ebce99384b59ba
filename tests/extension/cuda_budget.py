"""What the CUDA kernels take of a multiprocessor, as ptxas prints it: ``python -m tests.extension.cuda_budget``."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

CSRC = Path(__file__).parents[2] / "csrc"
SOURCES = sorted(CSRC.rglob("*.cu"), key=lambda path: -path.stat().st_size)
ARCHITECTURES = ("80", "86", "89", "90", "100", "120")
BUDGET = Path(__file__).with_name("cuda_budget.ini")


class Entry(NamedTuple):
    """One instantiation of a kernel, compiled for one architecture."""

    symbol: str
    architecture: str
    registers: int
    shared: int  # bytes, static
    stack: int  # bytes, with what is spilled

    @property
    def kernel(self) -> str:
        return kernel_of(self.symbol)


def kernel_of(symbol: str) -> str:
    """``mixed_sum::forward_kernel`` for ``_ZN7fastnas9mixed_sum14forward_kernelI...``."""
    names, at = [], len("_ZN") if symbol.startswith("_ZN") else len("_Z")
    while size := re.match(r"\d+", symbol[at:]):
        begin = at + size.end()
        at = begin + int(size[0])
        names.append(symbol[begin:at])
    return "::".join(name for name in names if name != "fastnas" and not name.startswith("_GLOBAL__"))


def compile_one(source: Path, architecture: str) -> list[Entry]:
    """Everything for one architecture; the host's half, too, for one of them."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", f"-I{CSRC}", "-O3", "-Xptxas=-v", "-c" if architecture == "90" else "-cubin"]
        command += [f"-gencode=arch=compute_{architecture},code=sm_{architecture}"]
        command += [str(source), "-o", str(Path(folder) / "out.o")]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
        done.stdout + done.stderr,
        flags=re.DOTALL,
    )
    entries = []
    for symbol, arch, *stack, registers, rest in found:
        shared = re.search(r"(\d+) bytes smem", rest)
        entries.append(
            Entry(symbol, arch, int(registers), int(shared[1]) if shared else 0, sum(map(int, stack)))
        )
    return entries


def measure() -> list[Entry] | None:
    """All kernels for all architectures; None without nvcc."""
    if shutil.which("nvcc") is None:
        return None
    jobs = [(source, architecture) for source in SOURCES for architecture in ARCHITECTURES]
    with ThreadPoolExecutor(2) as pool:
        return [entry for entries in pool.map(lambda job: compile_one(*job), jobs) for entry in entries]


def budget() -> dict[str, dict[str, int]]:
    """``{kernel: {"registers": ..., "shared": ...}}``, the most that each may take."""
    parser = configparser.ConfigParser()
    parser.read_string(BUDGET.read_text())
    return {
        kernel: {key: int(value) for key, value in parser[kernel].items()} for kernel in parser.sections()
    }


def complaints(entries: list[Entry], allowed: dict[str, dict[str, int]]) -> list[str]:
    """A sentence for everything that is over its budget or has none, and for budgets of nothing."""
    found = []
    for kernel in sorted({entry.kernel for entry in entries} - allowed.keys()):
        own = [entry for entry in entries if entry.kernel == kernel]
        found.append(
            f"{kernel} has no budget; add to tests/extension/{BUDGET.name}: [{kernel}] registers = "
            f"{max(e.registers for e in own)} shared = {max(e.shared for e in own)}, a line each"
        )
    for kernel in sorted(allowed.keys() - {entry.kernel for entry in entries}):
        found.append(f"[{kernel}] in tests/extension/{BUDGET.name} is no kernel's; take it out")
    for entry in entries:
        where = f"{entry.symbol} on sm_{entry.architecture}"
        own = allowed.get(entry.kernel, {})
        if entry.stack > 0:
            found.append(f"{where} uses the stack: {entry.stack} bytes with what it spills")
        for key in own:
            if getattr(entry, key) > own[key]:
                found.append(f"{where} takes {getattr(entry, key)} of {key}, and {own[key]} are its budget")
    return found


def table(entries: list[Entry]) -> str:
    """A row an instantiation, as docs/gpu-status.md has them."""
    lines = [
        f"| kernel | registers on sm_{' / '.join(ARCHITECTURES)} | shared, bytes | stack, bytes |",
        "|---|---|---|---|",
    ]
    for symbol in sorted({entry.symbol for entry in entries}):
        own = {entry.architecture: entry for entry in entries if entry.symbol == symbol}
        registers = " / ".join(str(own[a].registers) for a in ARCHITECTURES if a in own)
        name = symbol
        if shutil.which("c++filt"):
            name = subprocess.run(["c++filt", symbol], capture_output=True, text=True).stdout
            name = (
                name.replace("(anonymous namespace)::", "")
                .split("(")[0]
                .strip()
                .removeprefix("void ")
                .replace("fastnas::", "")
            )
        shared, stack = (max(getattr(e, key) for e in own.values()) for key in ("shared", "stack"))
        lines.append(f"| `{name}` | {registers} | {shared} | {stack} |")
    return "\n".join(lines)


if __name__ == "__main__":
    measured = measure()
    if measured is None:
        raise SystemExit("nvcc is not on the PATH")
    print(table(measured))
