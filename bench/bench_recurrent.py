"""The recurrent supernet at its authors' sizes: ``highway_sum``, a weight step and a step of ``darts``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.measure import peak_bytes, synchronize
from fastnas.bilevel import InnerSettings, method
from fastnas.ops import highway_sum
from fastnas.ops.highway_sum import _highway_sum_ref
from fastnas.search.step import SearchStep
from fastnas.spaces.recurrent import supernet
from fastnas.supernet import build_recurrent

Node = Callable[[Tensor, Tensor, Tensor], Tensor]
NODES: dict[str, Node] = {"vanilla": _highway_sum_ref, "fastnas": highway_sum}
BACKENDS = {"vanilla": "reference", "fastnas": "fused"}
UNITS, WORDS, STREAMS, LENGTH, RATE = 300, 10_000, 256, 35, 20.0


def make_node(node: Node, sources: int) -> Callable[[], list[Tensor]]:
    """A call that runs a node forward and backward and returns the node and its gradients."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    leaves = [normal(sources, 4), normal(sources, STREAMS, UNITS), normal(sources, STREAMS, 2 * UNITS)]
    grad = normal(STREAMS, UNITS)
    for leaf in leaves:
        leaf.requires_grad_()

    def run() -> list[Tensor]:
        out = node(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]

    return run


def make_step(backend: str, name: str) -> Callable[[], Tensor]:
    """A call that makes a weight step, or a whole step of ``darts``, and returns the loss before it."""
    torch.manual_seed(0)
    net = build_recurrent(supernet(UNITS, words=WORDS), backend=backend)
    states = {stream: net.initial_state(STREAMS) for stream in ("train", "val")}
    settings = InnerSettings(RATE, weight_decay=5e-7, clip=0.25)
    step = SearchStep(net, method("darts"), settings, grad_clip=0.25, arch_learning_rate=3e-3, states=states)
    text = torch.randint(WORDS, (2, LENGTH + 1, STREAMS))
    train, val = ((part[:-1], part[1:].reshape(-1)) for part in text)

    def run() -> Tensor:
        return (
            step.weight_step(train, RATE)[0] if name == "weight step" else step([train], val, RATE).losses[0]
        )

    return run


@pytest.mark.benchmark(group="highway_sum")
@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("sources", [1, 4, 8])
def test_node(benchmark: Any, sources: int, name: str) -> None:
    plain, fused = (make_node(node, sources)() for node in NODES.values())
    for theirs, ours in zip(plain, fused, strict=True):
        assert (theirs - ours).abs().max() <= 64 * torch.finfo(torch.float32).eps * theirs.abs().max()
    run = make_node(NODES[name], sources)
    peak = peak_bytes(run, "cpu")
    benchmark.extra_info.update(implementation=name, case=f"S={sources} cpu", peak_bytes=peak)
    benchmark.pedantic(run, warmup_rounds=3, rounds=30)


@pytest.mark.benchmark(group="recurrent")
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("case", ["weight step", "darts step"])
def test_step(benchmark: Any, case: str, name: str) -> None:
    step = make_step(BACKENDS[name], case)

    def run() -> None:
        step()
        synchronize("cpu")

    benchmark.extra_info.update(implementation=name, case=f"{case} cpu", peak_bytes=None)
    benchmark.pedantic(run, warmup_rounds=1, rounds=5)
