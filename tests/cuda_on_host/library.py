"""The CUDA kernels and their bindings, built for the host: ``torch.ops.fastnas_on_host``, on tensors of the CPU."""

from __future__ import annotations

import fcntl
import functools
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import cpp_extension

from tests.cuda_on_host import sanitizer_flags

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "cuda_on_host"
LEFT_OUT = ("module.cpp", "_cpu.cpp", "capability.cpp")
IN_TRITON = ("highway_sum", "neumann", "virtual_step")  # folders of csrc whose bindings are of the CPU alone


def sources() -> list[Path]:
    """The kernels, the bindings and what these need."""
    csrc = ROOT / "csrc"
    found = [*csrc.rglob("*.cu"), *csrc.rglob("*.cpp")]
    return sorted(p for p in found if not p.name.endswith(LEFT_OUT) and p.parent.name not in IN_TRITON)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Processes that build in ``folder`` (made if need be) wait for one another: tests run in several."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def compile_all(files: list[Path], folder: Path, options: list[str]) -> list[Path]:
    """Their objects, made anew where a source or any header is newer."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    headers = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cuh")]
    headers += list((ROOT / "tests" / "cuda_on_host").glob("*.h"))
    newest = max(p.stat().st_mtime for p in headers)

    def build(source: Path) -> Path:
        target = folder / ("-".join(source.relative_to(ROOT).parts) + ".o")
        if not target.exists() or target.stat().st_mtime < max(newest, source.stat().st_mtime):
            command = [compiler, *options, "-x", "c++", "-c", str(source), "-o", str(target)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(build, files))


@functools.cache
def on_host() -> Any:
    """``torch.ops.fastnas_on_host``, built where that is needed."""
    watched = sanitizer_flags()
    folder = BUILD / ("watched" if watched else "plain")
    includes = [ROOT / "tests" / "cuda_on_host", ROOT / "csrc", *cpp_extension.include_paths()]
    includes.append(Path(sysconfig.get_paths()["include"]))
    options = ["-std=c++20", "-O1", "-fPIC", "-Wno-psabi", "-DFASTNAS_WITH_CUDA", "-DFASTNAS_CUDA_ON_HOST"]
    options.append("-DFASTNAS_WANTED_BLOCKS=1")  # large tiles for small images
    options += [f"-I{path}" for path in includes] + watched
    target = folder / "fastnas_on_host.so"
    with alone_in(folder):
        objects = compile_all(sources(), folder, options)
        libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
        command = ["g++", "-shared", *watched, *map(str, objects), *libraries, "-ltorch_cpu", "-lc10"]
        if not target.exists() or target.stat().st_mtime < max(
            p.stat().st_mtime for p in [*objects, Path(__file__)]
        ):
            subprocess.run([*command, "-o", str(target)], check=True)
    torch.ops.load_library(str(target))
    return torch.ops.fastnas_on_host
