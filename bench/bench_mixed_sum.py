"""mixed_sum, forward and backward, against ``sum(w * x)`` in plain PyTorch."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.measure import peak_bytes, synchronize
from fastnas.ops import mixed_sum
from fastnas.ops.mixed_sum import _mixed_sum_ref

IMPLEMENTATIONS: dict[str, Callable[[Tensor, Sequence[Tensor]], Tensor]] = {
    "vanilla": _mixed_sum_ref,
    "fastnas": mixed_sum,
}

# (branches, shape, dtype): the DARTS cell's edges at batch 64 and 16, a cell's whole node, a small one.
CASES = [
    (8, (64, 16, 32, 32), torch.float32),
    (8, (64, 16, 32, 32), torch.bfloat16),
    (8, (16, 16, 32, 32), torch.float32),
    (40, (16, 32, 16, 16), torch.float32),
    (5, (64, 16, 32, 32), torch.float32),
    (8, (4, 64, 8, 8), torch.float32),
]

Step = Callable[[], list[Tensor]]


def describe(case: tuple[int, tuple[int, ...], torch.dtype]) -> str:
    branch_count, shape, dtype = case
    return f"K={branch_count} {'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"


def make_step(
    function: Callable[[Tensor, Sequence[Tensor]], Tensor],
    case: tuple[int, tuple[int, ...], torch.dtype],
    device: str,
) -> Step:
    """A call that runs forward and backward and returns ``[out, d weights, *d branches]``."""
    branch_count, shape, dtype = case
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device, dtype)

    weights = normal(branch_count).requires_grad_()
    branches = [normal(*shape).requires_grad_() for _ in range(branch_count)]
    grad = normal(*shape)

    def step() -> list[Tensor]:
        out = function(weights, branches)
        return [out.detach(), *torch.autograd.grad(out, [weights, *branches], grad)]

    return step


def check(case: tuple[int, tuple[int, ...], torch.dtype], device: str) -> None:
    """Both implementations give the same numbers, to the rounding of the dtype."""
    steps = [make_step(function, case, device) for function in IMPLEMENTATIONS.values()]
    eps = torch.finfo(case[2]).eps
    for plain, fused in zip(*(step() for step in steps), strict=True):
        error = (plain.double() - fused.double()).abs().max() / plain.double().abs().max()
        assert error <= (case[0] + 8) * eps, describe(case)


def measure(benchmark: Any, case: tuple[int, tuple[int, ...], torch.dtype], name: str, device: str) -> None:
    check(case, device)
    step = make_step(IMPLEMENTATIONS[name], case, device)

    def run() -> None:
        step()
        synchronize(device)

    peak = peak_bytes(run, device)
    benchmark.extra_info.update(implementation=name, case=f"{describe(case)} {device}", peak_bytes=peak)
    benchmark.pedantic(run, warmup_rounds=5, rounds=60)


@pytest.mark.benchmark(group="mixed_sum")
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES, ids=describe)
def test_cpu(benchmark: Any, case: tuple[int, tuple[int, ...], torch.dtype], name: str) -> None:
    measure(benchmark, case, name, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.benchmark(group="mixed_sum")
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES, ids=describe)
def test_cuda(benchmark: Any, case: tuple[int, tuple[int, ...], torch.dtype], name: str) -> None:
    measure(benchmark, case, name, "cuda")
