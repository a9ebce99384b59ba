"""Every Triton kernel against the CPU's ops and plain PyTorch, by Triton's interpreter, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from tests.kernels import skip_without_triton

skip_without_triton()


def test_kernels_in_the_interpreter():
    """The variable must be set before Triton is imported, and would change every other test's Triton."""
    file = str(Path(__file__).with_name("interpreted.py"))
    command = [sys.executable, "-m", "pytest", file, "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
