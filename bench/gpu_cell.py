"""``python -m bench.gpu_cell DEVICE BATCH CHANNELS SIDE``: one normal cell of the DARTS space, forward + backward.

Plain PyTorch as it comes, by torch.compile, and fastnas' fused cell with the same weights. A whole supernet takes
torch.compile many minutes, so one cell stands for it; ``bench.gpu`` runs this in a process that it can end.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.contenders import Contest, fastnas_model, full_float32, vanilla_model
from bench.measure import alternate, spread, synchronize
from bench.vanilla import Cell

_ROUNDS, _WARM_UP, _CELL = 30, 3, 1  # of 3 layers cells 1 and 2 are reductions; stage 1 is cell 0


def measure_cell(
    device: str, batch_size: int, channels: int, side: int, compiler: Callable[[Any], Any] = torch.compile
) -> dict[str, Any]:
    """Times of one pass of the three; ``compiler`` is torch.compile."""
    full_float32()
    contest = Contest(channels=channels, layers=3, batch_size=batch_size, image_size=side, device=device)
    model = vanilla_model(contest)
    net = fastnas_model(contest, "fused", model)
    vanilla = next(module for module in model.modules() if isinstance(module, Cell))
    stem = 3 * channels  # what the first cell reads, twice
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(batch_size, stem, side, side, generator=generator).to(device)
    states.requires_grad_()
    mixing = model.alphas[0].detach().softmax(-1).requires_grad_()
    with torch.no_grad():
        out = vanilla(states, states, mixing)
    grad = torch.randn(out.shape, generator=generator).to(device)
    weights = [*vanilla.parameters()]
    begin, end = net.weights.span(f"stages.{_CELL}.")
    own = [leaf for leaf in net.weights.leaves if leaf.data_ptr() == net.weights.flat[begin:end].data_ptr()]
    if len(own) != 1 or own[0].numel() != end - begin:  # not fused here: the tensors of the cell one by one
        own = [t for name, t in net.weights.tensors.items() if name.startswith(f"stages.{_CELL}.")]
    compiled = compiler(vanilla)

    def plain(cell: Callable[..., Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(cell(states, states, mixing), [states, mixing, *weights], grad))

    def fused() -> list[Tensor]:
        with net.frozen_statistics():
            result = net.cell(_CELL, [states, states], mixing)
        return list(torch.autograd.grad(result, [states, mixing, *own], grad))

    functions = {
        "vanilla": lambda: plain(vanilla),
        "vanilla, torch.compile": lambda: plain(compiled),
        "fastnas": fused,
    }
    firsts = {}
    for name, function in functions.items():
        start = time.perf_counter()
        found = function()
        synchronize(device)
        firsts[name] = time.perf_counter() - start
        _agree(name, found[:2], functions["vanilla"]()[:2])
    times = alternate(functions, _ROUNDS, _WARM_UP, device)
    return {
        "reason": "",
        "what": f"one normal cell of the DARTS space, C = {channels}, batch {batch_size} of {side}x{side}",
        "contenders": [
            {"name": name, "seconds": spread(taken), "first_seconds": firsts[name]}
            for name, taken in times.items()
        ],
    }


def _agree(name: str, found: list[Tensor], expected: list[Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        if (mine - theirs).norm() > 1e-3 * theirs.norm():  # one flipped ReLU moves a gradient by so much
            raise RuntimeError(f"{name} disagrees with plain PyTorch, so nothing was timed")


if __name__ == "__main__":
    device, *numbers = sys.argv[1:]
    batch_size, channels, side = map(int, numbers)
    print(json.dumps(measure_cell(device, batch_size, channels, side)))
