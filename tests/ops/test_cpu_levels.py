"""The tests marked ``every_cpu_level`` again, by the kernels of each instruction level that this CPU has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastnas.build_info import build_info

LEVELS = ["baseline", "avx2", "avx512"]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("level", LEVELS)
def test_every_cpu_level(level):
    if level not in build_info().cpu_capabilities:
        pytest.skip(f"this CPU has no {level}")
    if level == build_info().cpu_capability:
        pytest.skip(f"{level} is what this process runs the tests at")
    code = (
        "import sys, pytest, fastnas.build_info as b;"
        f"assert b.build_info().cpu_capability == {level!r};"
        f"sys.exit(pytest.main(['tests/ops', 'tests/supernet', '-m', 'every_cpu_level', '-p', 'no:cacheprovider']))"
    )
    environment = {**os.environ, "FASTNAS_CPU_CAPABILITY": level}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "op", sorted(p.name.removesuffix("_cpu_kernel.h") for p in (ROOT / "csrc").rglob("*_cpu_kernel.h"))
)
def test_every_op_has_such_tests(op):
    """Of what is compiled once for each level."""
    files = [*Path(__file__).parent.glob(f"test_{op}*.py")]
    assert any("@pytest.mark.every_cpu_level" in path.read_text() for path in files)
