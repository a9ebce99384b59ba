"""CUDA sources compile without torch and without a GPU, and stay inside their budgets (``cuda_budget.ini``)."""

import re

import pytest

from tests.extension.cuda_budget import (
    ARCHITECTURES,
    CSRC,
    SOURCES,
    Entry,
    budget,
    complaints,
    kernel_of,
    measure,
    table,
)

KERNEL = "_ZN7fastnas9mixed_sum14forward_kernelIffLb1EEEvNS0_11BranchTableEPKT0_PT_Pfbl"


@pytest.mark.parametrize("path", [*SOURCES, *sorted(CSRC.rglob("*.cuh"))], ids=lambda path: path.name)
def test_no_torch_header(path):
    included = re.findall(r'#include\s*[<"]([^>"]+)', path.read_text())
    assert not [name for name in included if re.match(r"torch|ATen|c10|stable\.h|layout\.h", name)]


@pytest.fixture(scope="module")
def entries():
    measured = measure()
    if measured is None:
        pytest.skip("nvcc is not on the PATH")
    return measured


def test_every_kernel_compiles_for_every_architecture(entries):
    names = {entry.symbol for entry in entries}
    assert {(e.symbol, e.architecture) for e in entries} == {(n, a) for n in names for a in ARCHITECTURES}


def test_budgets(entries):
    assert not complaints(entries, budget())


@pytest.mark.parametrize(
    ("symbol", "kernel"),
    [
        (KERNEL, "mixed_sum::forward_kernel"),
        ("_ZN7fastnas4cell12_GLOBAL__N_116pixel_sum_kernelIfEEvPKT_", "cell::pixel_sum_kernel"),
        ("_Z4copyPfS_", "copy"),
    ],
)
def test_names(symbol, kernel):
    assert kernel_of(symbol) == kernel


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (Entry(KERNEL, "90", 81, 0, 0), "takes 81 of registers, and 80 are its budget"),
        (Entry(KERNEL, "90", 80, 4, 0), "takes 4 of shared, and 0 are its budget"),
        (Entry(KERNEL, "90", 80, 0, 8), "uses the stack: 8 bytes"),
        (Entry("_Z4copyPfS_", "90", 8, 0, 0), "copy has no budget; add to .* registers = 8 shared = 0"),
    ],
)
def test_complaints(entry, complaint):
    fine = Entry(KERNEL, "90", 80, 0, 0)
    allowed = {"mixed_sum::forward_kernel": {"registers": 80, "shared": 0}}
    assert complaints([fine], allowed) == []
    (found,) = complaints([fine, entry], allowed)
    assert re.search(complaint, found)


def test_a_budget_of_no_kernel():
    assert complaints([], {"gone": {"registers": 1}}) == [
        "[gone] in tests/extension/cuda_budget.ini is no kernel's; take it out"
    ]


def test_table():
    rows = table([Entry(KERNEL, a, 32, 0, 0) for a in ARCHITECTURES]).splitlines()
    assert len(rows) == 3
    assert "32 / 32 / 32 / 32 / 32 / 32 | 0 | 0 |" in rows[-1]
