"""An op's tests under other CPU levels, and an op under other numbers of threads or on a device without a kernel."""

import os
import subprocess
import sys

import pytest
import torch

from fastnas.build_info import build_info

LEVELS = ["baseline", "avx2", "avx512"]

# torch.library.opcheck of ops that write into an argument and return a list of tensors: torch.compile takes none such
NOT_COMPILED = ("test_schema", "test_autograd_registration", "test_faketensor")


def assert_passes_at(level, file, keyword):
    """The tests of ``file`` that match ``keyword`` pass in a process whose kernels are those of ``level``."""
    if level not in build_info().cpu_capabilities:
        pytest.skip(f"this CPU has no {level}")
    if level == build_info().cpu_capability:
        pytest.skip(f"{level} is what this process runs the tests at")
    code = (
        "import sys, pytest, fastnas.build_info as b;"
        f"assert b.build_info().cpu_capability == {level!r};"
        f"sys.exit(pytest.main([{file!r}, '-k', {keyword!r}, '-p', 'no:cacheprovider']))"
    )
    environment = {**os.environ, "FASTNAS_CPU_CAPABILITY": level}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def runs_with_threads(function):
    """What ``function()`` returns with 1, 2, 3, 7 threads and one again."""
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7, 1):
            torch.set_num_threads(count)
            runs.append(function())
    finally:
        torch.set_num_threads(threads)
    return runs


def as_elsewhere(name, *arguments):
    """What the op does on a device that has no kernel of its own: here, with tensors of the CPU."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.XPU)
    return getattr(torch.ops.fastnas, name).default.redispatch(keys, *arguments)


def as_on_cuda(name, *arguments):
    """What CUDA tensors would get from an op in Triton: here, with tensors of the CPU."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    return getattr(torch.ops.fastnas, name).default.redispatch(keys, *arguments)
