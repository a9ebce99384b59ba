"""The arena: one buffer, the modules' own tensors as views into it."""

import torch
from torch import nn

from fastnas.supernet import Arena, gradients


def test_views_and_buffer_are_the_same_memory():
    layer = nn.Linear(3, 2)
    before = [p.clone() for p in layer.parameters()]
    arena = Arena(dict(layer.named_parameters()))
    assert len(arena) == 8
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    arena.flat.mul_(2)
    assert torch.equal(layer.weight, 2 * before[0])
    with torch.no_grad():
        layer.bias.fill_(7)
    assert arena.flat[6:].tolist() == [7, 7]
    assert arena["weight"] is layer.weight


def test_gradients_are_flat_in_the_layout_and_zero_where_nothing_depends():
    a, b, c = (nn.Parameter(torch.randn(n)) for n in (3, 2, 4))
    weights, alphas = Arena({"a": a, "b": b}), Arena({"c": c})
    found_w, found_a = gradients((a**2).sum() * c.sum(), weights, alphas)
    torch.testing.assert_close(found_w, torch.cat([2 * a * c.sum(), torch.zeros(2)]))
    torch.testing.assert_close(found_a, (a**2).sum().expand(4))
    assert a.grad is None


def test_dtype_and_names():
    layer = nn.Linear(3, 2)
    arena = Arena(dict(layer.named_parameters()), dtype=torch.float64)
    assert arena.flat.dtype == layer.weight.dtype == torch.float64
    assert list(arena.tensors) == ["weight", "bias"]
