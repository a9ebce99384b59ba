"""What a step does beside its gradients: clipped SGD, Adam on alpha, a central difference; against plain PyTorch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.measure import peak_bytes, synchronize
from fastnas.ops import adam_step_, difference_, perturb_, sgd_step_, vector_norm

# The DARTS supernet's weights (C16, 8 cells) and its architecture parameters.
WEIGHTS, ALPHAS = 1_930_618, 2 * 14 * 8

RADIUS, CLIP, RATE, MOMENTUM, DECAY = 0.01, 5.0, 0.025, 0.9, 3e-4
ADAM: dict[str, Any] = {"betas": (0.5, 0.999), "weight_decay": 1e-3}

Step = Callable[[], list[Tensor]]  # returns what it wrote


def vectors(count: int, size: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator).to(device, dtype) for _ in range(count)]


def vanilla_sgd(device: str, dtype: torch.dtype) -> Step:
    w, grad = vectors(2, WEIGHTS, device, dtype)
    w.grad = grad
    optimiser = torch.optim.SGD([w], lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)

    def step() -> list[Tensor]:
        torch.nn.utils.clip_grad_norm_([w], CLIP)
        optimiser.step()
        return [w, optimiser.state[w]["momentum_buffer"]]

    return step


def fused_sgd(device: str, dtype: torch.dtype) -> Step:
    w, grad = vectors(2, WEIGHTS, device, dtype)
    buffer = torch.zeros_like(w)

    def step() -> list[Tensor]:
        sgd_step_(w, grad, buffer, RATE, momentum=MOMENTUM, weight_decay=DECAY, clip=CLIP)
        return [w, buffer]

    return step


def vanilla_adam(device: str, dtype: torch.dtype) -> Step:
    alpha, alpha.grad = vectors(2, ALPHAS, device, dtype)
    optimiser = torch.optim.Adam([alpha], lr=3e-4, **ADAM)

    def step() -> list[Tensor]:
        optimiser.step()
        return [alpha, optimiser.state[alpha]["exp_avg"], optimiser.state[alpha]["exp_avg_sq"]]

    return step


def fused_adam(device: str, dtype: torch.dtype) -> Step:
    alpha, grad = vectors(2, ALPHAS, device, dtype)
    exp_avg, exp_avg_sq = torch.zeros_like(alpha), torch.zeros_like(alpha)
    count = torch.zeros((), device=device)

    def step() -> list[Tensor]:
        adam_step_(alpha, grad, exp_avg, exp_avg_sq, count, 3e-4, **ADAM)
        return [alpha, exp_avg, exp_avg_sq]

    return step


def vanilla_difference(device: str, dtype: torch.dtype) -> Step:
    """The norm, both displacements and the difference, without the gradients in between."""
    saved, u, behind, ahead = vectors(4, WEIGHTS, device, dtype)
    w, result = torch.empty_like(saved), torch.empty_like(saved)

    def step() -> list[Tensor]:
        norm = torch.linalg.vector_norm(u)
        eps = torch.nan_to_num(RADIUS / norm, posinf=0.0)
        torch.addcmul(saved, u, eps, value=1, out=w)
        torch.addcmul(saved, u, eps, value=-1, out=w)
        result.copy_(ahead).sub_(behind).mul_(norm / (2 * RADIUS))
        return [w, result]

    return step


def fused_difference(device: str, dtype: torch.dtype) -> Step:
    saved, u, behind, ahead = vectors(4, WEIGHTS, device, dtype)
    w, result = torch.empty_like(saved), torch.empty_like(saved)

    def step() -> list[Tensor]:
        norm = vector_norm(u)
        perturb_(w, saved, u, norm, RADIUS, 1)
        perturb_(w, saved, u, norm, RADIUS, -1)
        difference_(result.copy_(ahead), behind, norm, RADIUS)
        return [w, result]

    return step


IMPLEMENTATIONS: dict[str, dict[str, Callable[[str, torch.dtype], Step]]] = {
    f"clip and SGD, P={WEIGHTS}": {"vanilla": vanilla_sgd, "fastnas": fused_sgd},
    f"Adam, H={ALPHAS}": {"vanilla": vanilla_adam, "fastnas": fused_adam},
    f"central difference, P={WEIGHTS}": {"vanilla": vanilla_difference, "fastnas": fused_difference},
}


def check(case: str, device: str) -> None:
    """Both implementations write the same numbers, in float64: in float32 torch's norm of so many is off by 1e-5."""
    plain_step, fused_step = (make(device, torch.float64) for make in IMPLEMENTATIONS[case].values())
    for plain, fused in zip(plain_step(), fused_step(), strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-10, atol=1e-12)


def measure(benchmark: Any, case: str, name: str, device: str) -> None:
    check(case, device)
    step = IMPLEMENTATIONS[case][name](device, torch.float32)

    def run() -> None:
        step()
        synchronize(device)

    run()  # torch's optimisers make their state at the first step
    peak = peak_bytes(run, device)
    benchmark.extra_info.update(implementation=name, case=f"{case} {device}", peak_bytes=peak)
    benchmark.pedantic(run, warmup_rounds=5, rounds=60)


@pytest.mark.benchmark(group="step")
@pytest.mark.parametrize("name", ["vanilla", "fastnas"])
@pytest.mark.parametrize("case", IMPLEMENTATIONS)
def test_cpu(benchmark: Any, case: str, name: str) -> None:
    measure(benchmark, case, name, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.benchmark(group="step")
@pytest.mark.parametrize("name", ["vanilla", "fastnas"])
@pytest.mark.parametrize("case", IMPLEMENTATIONS)
def test_cuda(benchmark: Any, case: str, name: str) -> None:
    measure(benchmark, case, name, "cuda")
