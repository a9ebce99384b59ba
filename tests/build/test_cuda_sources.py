"""CUDA sources compile without torch and without a GPU, and stay inside their register budgets."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
SOURCES = sorted(CSRC.rglob("*.cu"))
ARCHITECTURES = ("80", "86", "89", "90", "100", "120")

# Registers per thread at most, by kernel; no kernel may spill or use the stack.
REGISTERS = {
    "mixed_sum::forward_kernel": 80,
    "mixed_sum::backward_kernel": 128,  # two blocks of 256 threads per SM
    "mixed_sum::weights_grad_kernel": 40,
    "vector_norm::squares_kernel": 40,
    "vector_norm::root_kernel": 40,
    "finite_difference::perturb_kernel": 40,
    "finite_difference::difference_kernel": 40,
    "optimiser::sgd_kernel": 40,
    "optimiser::adam_begin_kernel": 40,
    "optimiser::adam_kernel": 40,
    "normalised_mixed_sum::forward_kernel": 80,
    "normalised_mixed_sum::products_kernel": 128,
    "normalised_mixed_sum::finish_kernel": 40,
    "shared_pooling::forward_kernel": 128,
    "shared_pooling::backward_kernel": 128,
    "shared_pooling::norms_kernel": 48,
}


@pytest.mark.parametrize("path", [*SOURCES, *sorted(CSRC.rglob("*.cuh"))], ids=lambda path: path.name)
def test_no_torch_header(path):
    included = re.findall(r'#include\s*[<"]([^>"]+)', path.read_text())
    assert not [name for name in included if re.match(r"torch|ATen|c10|stable\.h|layout\.h", name)]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """``[(kernel, architecture, registers, stack and spill bytes)]`` as ptxas prints them."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on the PATH")
    gencodes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    rows = []
    for source in SOURCES:
        target = tmp_path_factory.mktemp("cubin") / f"{source.stem}.o"
        command = [
            "nvcc",
            f"-I{CSRC}",
            "-O3",
            "--threads=2",
            "-Xptxas=-v",
            *gencodes,
            "-c",
            source,
            "-o",
            target,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        rows += re.findall(
            r"Compiling entry function '(\w+)' for 'sm_(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
            r"(\d+) bytes spill loads.*?Used (\d+) registers",
            done.stdout + done.stderr,
            flags=re.DOTALL,
        )
    return [(name, arch, int(registers), int(a) + int(b) + int(c)) for name, arch, a, b, c, registers in rows]


def test_every_kernel_compiles_for_every_architecture(compiled):
    built = {(name, arch) for name, arch, *_ in compiled}
    names = {name for name, _ in built}
    assert built == {(name, arch) for name in names for arch in ARCHITECTURES}
    for kernel in REGISTERS:  # mangled names hold each part of the name
        assert any(all(part in name for part in kernel.split("::")) for name in names), kernel


def test_registers_and_spills(compiled):
    for name, arch, registers, stack in compiled:
        (budget,) = (REGISTERS[k] for k in REGISTERS if all(f"{len(p)}{p}" in name for p in k.split("::")))
        assert registers <= budget, (name, arch)
        assert stack == 0, (name, arch)
