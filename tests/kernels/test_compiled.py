"""Triton kernels compile without a GPU, use 16-byte accesses and IEEE arithmetic, and stay inside their budgets."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from tests.kernels import skip_without_triton

skip_without_triton()

import triton  # noqa: E402
from triton.backends import nvidia  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from fastnas.kernels import highway_sum, neumann, virtual_step  # noqa: E402

CUOBJDUMP = Path(nvidia.__file__).with_name("bin") / "cuobjdump"
ARCHITECTURES = (80, 90, 100, 120)

# Registers per thread at most, by kernel; no kernel may spill or use the stack.
REGISTERS = {
    "neumann": 48,
    "root": 40,
    "virtual_step": 48,
    "highway_sum fp32": 72,
    "highway_sum fp64": 80,
}

NEUMANN = {
    "v": "*T", "series": "*T", "ahead": "*T", "behind": "*T", "norm": "*fp64", "shares": "*fp64",
    "per_norm": "fp64", "rate": "*fp64", "n": "i32", "BLOCK": "constexpr",
}  # fmt: skip
ROOT = {"shares": "*fp64", "norm": "*fp64", "count": "i32", "BLOCK": "constexpr"}
VIRTUAL_STEP = {
    "w": "*T", "grad": "*T", "buffer": "*T", "learning_rate": "fp64", "rate": "*fp64", "momentum": "fp64",
    "weight_decay": "fp64", "n": "i32", "DECAYS": "constexpr", "BLOCK": "constexpr",
}  # fmt: skip


HIGHWAY = {
    "mixing": "*T", "states": "*T", "raw": "*T", "out": "*T", "sources": "i32", "rows": "i32", "units": "i32",
    "BLOCK": "constexpr",
}  # fmt: skip
HIGHWAY_BACKWARD = {
    "grad": "*T", "mixing": "*T", "states": "*T", "raw": "*T", "states_grad": "*T", "raw_grad": "*T", "shares": "*T",
    "rows": "i32", "units": "i32", "BLOCK": "constexpr",
}  # fmt: skip


def variants():
    """``(budget, kernel, signature, constants, warps)``: every dtype, each optional argument there or not."""
    for dtype, name in ((torch.float32, "fp32"), (torch.float64, "fp64")):
        block, warps = neumann.CONFIGURATIONS[dtype]
        for absent in ([], ["rate"]):
            constants = {"BLOCK": block, **dict.fromkeys(absent)}
            yield "neumann", neumann.step_kernel, typed(NEUMANN, name, constants), constants, warps
        block, warps = virtual_step.CONFIGURATIONS[dtype]
        for absent, decays in (([], True), (["rate"], True), (["buffer", "rate"], False)):
            constants = {"BLOCK": block, "DECAYS": decays, **dict.fromkeys(absent)}
            kernel = virtual_step.step_kernel
            yield "virtual_step", kernel, typed(VIRTUAL_STEP, name, constants), constants, warps
    constants = {"BLOCK": neumann.ROOT_BLOCK}
    yield "root", neumann.root_kernel, ROOT, constants, neumann.ROOT_WARPS


def typed(signature, dtype, constants):
    return {
        name: "constexpr" if name in constants else kind.replace("T", dtype)
        for name, kind in signature.items()
    }


def compiled(kernel, signature, constants, warps, architecture, **changes):
    """The kernel as the launcher would have it for arrays that are aligned to 16 bytes."""
    signature = signature | changes
    hints = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(kernel, signature, constants, hints)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_budgets_and_accesses(architecture, tmp_path):
    for budget, kernel, signature, constants, warps in variants():
        binary = compiled(kernel, signature, constants, warps, architecture)
        cubin = tmp_path / "kernel.cubin"
        cubin.write_bytes(binary.asm["cubin"])
        dump = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
        ).stdout
        ((registers, stack, local),) = re.findall(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", dump)
        what = (budget, signature, constants)
        assert int(registers) <= REGISTERS[budget], what
        assert (stack, local) == ("0", "0"), what  # spills would be in local memory
        ptx = binary.asm["ptx"]
        assert not re.findall(r"\.(?:ftz|approx)\b", ptx), what
        if budget != "root":
            pack = r"v4\.b32" if "*fp32" in signature.values() else r"v2\.b64"
            assert re.search(rf"ld\.global[\w.]*\.{pack}", ptx), what
            assert re.search(rf"st\.global[\w.]*\.{pack}", ptx), what
        assert "atom" not in ptx, what


@pytest.mark.parametrize("architecture", [ARCHITECTURES[0], ARCHITECTURES[-1]])
def test_highway_sum_stays_in_its_budget(architecture, tmp_path):
    """Its exponentials are the hardware's own in float32, and a row's units need not come in packs."""
    for dtype, name in ((torch.float32, "fp32"), (torch.float64, "fp64")):
        block, warps = highway_sum.CONFIGURATIONS[dtype]
        for kernel, signature in (
            (highway_sum.forward_kernel, HIGHWAY),
            (highway_sum.backward_kernel, HIGHWAY_BACKWARD),
        ):
            constants = {"BLOCK": block}
            binary = compiled(kernel, typed(signature, name, constants), constants, warps, architecture)
            cubin = tmp_path / "kernel.cubin"
            cubin.write_bytes(binary.asm["cubin"])
            dump = subprocess.run(
                [CUOBJDUMP, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
            ).stdout
            ((registers, stack, local),) = re.findall(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", dump)
            assert int(registers) <= REGISTERS[f"highway_sum {name}"], (kernel, registers)
            # Triton 3.9 keeps 8 bytes for the float64 exponential on sm_120, 3.6 none; neither reads or writes them.
            assert int(stack) <= (8 if dtype == torch.float64 else 0)
            assert local == "0"
            assert "atom" not in binary.asm["ptx"]


def test_more_elements_than_an_int32_counts():
    for budget, kernel, signature, constants, warps in variants():
        count = {"count": "i64"} if budget == "root" else {"n": "i64"}
        if "*fp64" not in (signature.get("v"), signature.get("w")):
            compiled(kernel, signature, constants, warps, 90, **count)


class NoGpu:
    """A driver for a launcher that compiles and does not launch."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def launched(monkeypatch):
    """What calls of kernels compile, from their real arguments, up to the launch."""
    kernels, run = [], JITFunction.run
    monkeypatch.setattr(
        JITFunction,
        "run",
        lambda self, *arguments, warmup, **options: kernels.append(
            run(self, *arguments, warmup=True, **options)
        ),
    )
    monkeypatch.setattr(triton.runtime.driver, "_active", NoGpu())
    return kernels


@pytest.mark.parametrize("size", [1, 16, 2049])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_the_launcher_makes_of_the_arguments(launched, dtype, size):
    """One element and one share, which a launcher may take for constants; tensors that are absent; slices."""
    rate = torch.ones((), dtype=torch.float64)
    x = torch.ones(4, size + 1, dtype=dtype)
    for vectors in (x[:, :-1].clone(), x[:, 1:]):
        for where in (None, rate):
            neumann.neumann_step_(*vectors, rate, 0.01, 0.1, where)
            virtual_step.virtual_step_(*vectors[:2], None, 0.1, 0.9, 0.0, where)
            virtual_step.virtual_step_(*vectors[:3], 0.1, 0.9, 1e-3, where)
    assert len(launched) == 2 * 2 * 4
    steps = [kernel for kernel in launched if kernel.name == "step_kernel"]
    assert len(steps) == 2 * 2 * 3
    for kernel in steps:  # Python's floats would become float32
        assert "fp32" not in kernel.src.signature.values()
        assert "fp64" in kernel.src.signature.values()
