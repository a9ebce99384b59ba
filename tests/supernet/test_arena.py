"""The arena: one buffer, the modules' own tensors as views into it."""

import pytest
import torch
from torch import nn

from fastnas.supernet import Arena, gradients


def three_layers():
    """An arena over "a.weight", "a.bias", "b.weight", "b.bias", "c.weight", "c.bias", and its network."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(2, 4), "c": nn.Linear(4, 1)})
    return Arena(dict(net.named_parameters()), dtype=torch.float64), net


def loss_with(b_flat, net):
    """A loss of all three layers that takes the second one's parameters as one flat tensor."""
    weight, bias = b_flat[:8].view(4, 2), b_flat[8:]
    hidden = net["a"](torch.linspace(-1, 1, 15, dtype=torch.float64).view(5, 3)).tanh()
    return net["c"]((hidden @ weight.T + bias).tanh()).square().sum()


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


def test_span_and_begin_say_where_a_tensor_lies():
    arena, net = three_layers()
    assert arena.span("b.") == (8, 20)
    assert (arena.begin("b.weight"), arena.begin("b.bias")) == (8, 16)
    assert arena.span("") == (0, 25)
    assert arena.span("d.") == (0, 0)
    begin, end = arena.span("b.bias")
    assert torch.equal(arena.flat[begin:end], net["b"].bias)


def test_tensors_that_are_no_neighbours_have_no_span():
    tensors = {name: torch.zeros(2) for name in ("a.x", "b.x", "a.y")}
    with pytest.raises(AssertionError, match="not one span"):
        Arena(tensors).span("a.")


def test_a_merged_leaf_is_the_tensors_own_memory_and_stands_in_their_place():
    arena, net = three_layers()
    leaf = arena.merge("b.")
    assert leaf.is_leaf
    assert leaf.requires_grad
    assert leaf.data_ptr() == net["b"].weight.data_ptr()
    arena.flat.fill_(3.0)
    assert (leaf == 3.0).all()
    assert leaf.shape == (12,)
    ids = [id(kept) for kept in arena.leaves]
    assert ids == [id(t) for t in (net["a"].weight, net["a"].bias, leaf, net["c"].weight, net["c"].bias)]
    assert list(arena.tensors) == ["a.weight", "a.bias", "b.weight", "b.bias", "c.weight", "c.bias"]


def test_gradients_through_a_merged_leaf_are_those_of_its_tensors():
    arena, net = three_layers()
    expected = gradients(loss_with(torch.cat([p.reshape(-1) for p in net["b"].parameters()]), net), arena)[0]
    found = gradients(loss_with(arena.merge("b."), net), arena)[0]
    assert torch.equal(found, expected)
    assert found[8:20].abs().min() > 0
    assert all(p.grad is None for p in net.parameters())


def test_backward_through_a_merged_leaf_fills_the_tensors_own_grad():
    arena, net = three_layers()
    leaf = arena.merge("b.")
    expected = gradients(loss_with(leaf, net), arena)[0]

    def flat_grad():
        return torch.cat([p.grad.reshape(-1) for p in net.parameters()])

    loss_with(leaf, net).backward()
    assert torch.equal(flat_grad(), expected)
    assert [p.grad.shape for p in net.parameters()] == [p.shape for p in net.parameters()]
    assert leaf.grad is None
    loss_with(leaf, net).backward()
    torch.testing.assert_close(flat_grad(), 2 * expected, rtol=1e-15, atol=0)
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    loss_with(leaf, net).backward()
    assert torch.equal(flat_grad(), expected)
    net.zero_grad(set_to_none=False)
    assert not flat_grad().any()


def test_a_step_between_forward_and_backward_is_noticed():
    """The merged leaf and the buffer count their changes together, so a stale backward pass cannot go unseen."""
    arena, net = three_layers()
    loss = loss_with(arena.merge("b."), net)
    arena.flat.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_constant_leaves_record_nothing():
    arena, net = three_layers()
    leaf = arena.merge("b.")
    net["a"].bias.requires_grad_(False)  # as the user wanted it: it stays so
    with arena.constant():
        assert not any(kept.requires_grad for kept in arena.leaves)
        assert not loss_with(leaf, net).requires_grad
        with arena.constant():
            pass
        assert not leaf.requires_grad
    assert [kept.requires_grad for kept in arena.leaves] == [True, False, True, True, True]


def test_constant_ends_with_an_error_too():
    arena, _ = three_layers()
    with pytest.raises(KeyError), arena.constant():
        raise KeyError
    assert all(kept.requires_grad for kept in arena.leaves)
