"""mixed_sum's CUDA launchers and kernels, run on the CPU through tests/cuda_on_host."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fastnas.ops.mixed_sum import _mixed_sum_ref
from tests.cuda_on_host import sanitizer_flags
from tests.ops.accuracy import assert_as_accurate
from tests.ops.test_mixed_sum import exact_value_and_grads, make, value_and_grads

ROOT = Path(__file__).parents[2]
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}  # csrc/dtype.h
DTYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)]
TABLE_SIZE = 128  # csrc/mixed_sum/mixed_sum.h: kTableSize

Pointer = ctypes.c_void_p


class ForwardParams(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in ("weights", "branches", "out")),
        *((name, ctypes.c_int64) for name in ("branch_count", "n")),
        *((name, ctypes.c_int) for name in ("dtype", "weights_dtype")),
    )


class BackwardParams(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in ("grad", "weights", "branches", "branch_grads", "weights_grad")),
        *((name, ctypes.c_int64) for name in ("branch_count", "n")),
        *((name, ctypes.c_int) for name in ("dtype", "weights_dtype")),
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    target = tmp_path_factory.mktemp("host") / "mixed_sum.so"
    folders = [f"-I{ROOT / 'tests' / 'cuda_on_host'}", f"-I{ROOT / 'csrc'}"]
    options = ["-std=c++17", "-O1", "-shared", "-fPIC", "-DFASTNAS_WITH_CUDA", "-x", "c++"]
    options += sanitizer_flags()
    source = ROOT / "csrc" / "mixed_sum" / "mixed_sum_cuda.cu"
    subprocess.run([compiler, *options, *folders, source, "-o", target], check=True)
    return ctypes.CDLL(str(target))


def table(tensors):
    return (Pointer * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))


def nan_like(tensor, size=None):
    return torch.full_like(tensor, float("nan")) if size is None else tensor.new_full((size,), float("nan"))


def run_forward(library, weights, branches):
    out = nan_like(branches[0])
    workspace = torch.full((out.numel(),), float("nan"))
    pointers = table(branches)
    params = ForwardParams(
        weights.data_ptr(), ctypes.addressof(pointers), out.data_ptr(), len(branches), out.numel(),
        DTYPE_CODES[out.dtype], DTYPE_CODES[weights.dtype],
    )  # fmt: skip
    scratch = workspace.data_ptr() if len(branches) > TABLE_SIZE else None
    assert library.fastnas_mixed_sum_forward(ctypes.byref(params), Pointer(scratch), None) == 0
    return out


def run_backward(library, grad, weights, branches, wanted):
    """``(d weights or None, [d branch or None])``; ``branches`` None: the weights' gradient is not wanted."""
    count, n = len(weights), grad.numel()
    grads = [nan_like(grad) if k in wanted else None for k in range(count)]
    grad_pointers, pointers = table(grads), table(branches) if branches else None
    weights_grad = nan_like(weights) if branches else None
    workspace = torch.full((count * min((n + 1023) // 1024, 1024),), float("nan"))
    params = BackwardParams(
        grad.data_ptr(), weights.data_ptr(), ctypes.addressof(pointers) if branches else None,
        ctypes.addressof(grad_pointers), weights_grad.data_ptr() if branches else None, count, n,
        DTYPE_CODES[grad.dtype], DTYPE_CODES[weights.dtype],
    )  # fmt: skip
    scratch = workspace.data_ptr() if branches else None
    assert library.fastnas_mixed_sum_backward(ctypes.byref(params), Pointer(scratch), None) == 0
    return weights_grad, grads


def check(library, weights, branches, grad):
    plain = value_and_grads(_mixed_sum_ref, weights.to(grad.dtype), branches, grad)
    plain[1] = plain[1].to(weights.dtype)
    exact = exact_value_and_grads(weights, branches, grad)
    weights_grad, grads = run_backward(library, grad, weights, branches, range(len(branches)))
    ours = [run_forward(library, weights, branches), weights_grad, *grads]
    for mine, theirs, truth in zip(ours, plain, exact, strict=True):
        assert_as_accurate(mine, theirs, truth)


@pytest.mark.parametrize(("dtype", "weights_dtype"), DTYPES)
@pytest.mark.parametrize(("size", "branch_count"), [(1, 1), (7, 5), (1134, 8), (5003, 9)])
def test_sizes(library, size, branch_count, dtype, weights_dtype):
    check(library, *make((size,), branch_count, dtype, weights_dtype))


@pytest.mark.parametrize(("dtype", "weights_dtype"), DTYPES)
@pytest.mark.parametrize("branch_count", [TABLE_SIZE, TABLE_SIZE + 1])
def test_more_branches_than_one_launch_takes(library, branch_count, dtype, weights_dtype):
    check(library, *make((37,), branch_count, dtype, weights_dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unaligned(library, dtype):
    weights, branches, grad = make((1135,), 3, dtype)
    check(library, weights, [branches[0][1:], *(x[:-1] for x in branches[1:])], grad[1:])


def test_partly_wanted(library):
    weights, branches, grad = make((1500,), 10)
    full_weights, full = run_backward(library, grad, weights, branches, range(10))
    for given, wanted in ((branches, []), (branches, [0, 3, 9]), (None, [1, 8])):
        weights_grad, grads = run_backward(library, grad, weights, given, wanted)
        assert weights_grad is None if given is None else torch.equal(weights_grad, full_weights)
        for k in wanted:
            assert torch.equal(grads[k], full[k])


def test_empty(library):
    weights, branches, grad = make((0,), 3)
    assert run_forward(library, weights, branches).shape == (0,)
    weights_grad, _ = run_backward(library, grad, weights, branches, range(3))
    assert torch.equal(weights_grad, torch.zeros(3))
