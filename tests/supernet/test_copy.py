"""A deep copy of a supernet, or of what holds one, is a whole one of its own."""

import copy

import pytest
import torch
import torch.nn.functional as F

from fastnas.bilevel import METHODS, InnerSettings
from fastnas.search.step import SearchStep
from fastnas.spaces import make_network
from fastnas.spaces.published import PUBLISHED
from fastnas.supernet import SupernetProblem, build_supernet, gradients
from tests.supernet.networks import SHAPES, batch, is_fused, named, supernet

BACKENDS = ["reference", "fused"]
ARENAS = ["weights", "alphas", "running"]
SETTINGS = InnerSettings(learning_rate=0.025, momentum=0.9, weight_decay=3e-4)
small = pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[6]], ids=named)
both = pytest.mark.parametrize("backend", BACKENDS)


def state(net):
    return torch.cat([getattr(net, arena).flat for arena in ARENAS])


def results(net, images, labels):
    """Logits and gradients, in training mode (which moves the running statistics) and then in evaluation mode."""
    found = []
    for training in (True, False):
        logits = net.train(training)(images)
        found += [logits.detach(), *gradients(F.cross_entropy(logits, labels), net.weights, net.alphas)]
    return torch.cat([tensor.reshape(-1) for tensor in found])


def assert_is_whole(net):
    """All that the modules hold are views into the arenas' buffers, in their order."""
    held = {"weights": net.named_parameters(), "running": net.named_buffers()}
    for name in ARENAS:
        arena = getattr(net, name)
        if name in held:
            assert {n: id(t) for n, t in held[name]} == {n: id(t) for n, t in arena.tensors.items()}
        address = arena.flat.data_ptr()
        for tensor in arena.tensors.values():
            assert tensor.data_ptr() == address
            address += tensor.nbytes
        assert address == arena.flat.data_ptr() + arena.flat.nbytes
        assert sum(leaf.numel() for leaf in arena.leaves) == len(arena)


@small
@both
def test_a_copy_is_whole_and_does_the_same(shape, backend):
    net = supernet(shape, backend)
    copied = copy.deepcopy(net)
    assert type(copied) is type(net)
    assert_is_whole(copied)
    assert_is_whole(net)
    assert torch.equal(state(copied), state(net))
    assert backend == "reference" or is_fused(copied)
    assert len(copied.weights.leaves) == len(net.weights.leaves)
    found = results(copied, *batch(shape))
    assert torch.equal(found, results(net, *batch(shape)))
    assert torch.equal(state(copied), state(net))  # the running statistics moved alike


@small
@both
def test_a_copy_changes_alone(shape, backend):
    net = supernet(shape, backend)
    before, expected = state(net).clone(), results(copy.deepcopy(net), *batch(shape))
    copied = copy.deepcopy(net)
    for arena in ARENAS:
        getattr(copied, arena).flat.add_(0.5)
    with copied.frozen_statistics(), copied.weights.constant():
        assert net.statistics_move
        assert all(leaf.requires_grad for leaf in net.weights.leaves)
    copied.train()
    F.cross_entropy(copied(batch(shape)[0]), batch(shape)[1]).backward()
    assert all(p.grad is not None for p in copied.parameters())
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(state(net), before)
    assert torch.equal(results(net, *batch(shape)), expected)
    kept, changed = state(copied).clone(), results(copied, *batch(shape))
    assert not torch.equal(changed, expected)
    assert not torch.equal(kept, before)


@both
def test_a_copy_of_a_copy_lives_longer_than_the_original(backend):
    shape = SHAPES[1]
    net = supernet(shape, backend)
    expected = results(copy.deepcopy(net), *batch(shape))
    for _ in range(2):
        net = copy.deepcopy(net)
    assert_is_whole(net)
    assert torch.equal(results(net, *batch(shape)), expected)


@both
def test_what_is_frozen_stays_frozen(backend):
    net = supernet(SHAPES[1], backend)
    net.stages[0][0].weight.requires_grad_(False)
    assert [p.requires_grad for p in copy.deepcopy(net).parameters()] == [
        p.requires_grad for p in net.parameters()
    ]


@both
def test_the_copy_of_a_search_step_trains_its_own_network(backend):
    """Its optimisers hold the arenas' buffers."""
    shape = SHAPES[1]
    step = SearchStep(supernet(shape, backend), METHODS["idarts"], SETTINGS)
    batches = [batch(shape, seed=seed) for seed in (2, 3, 4)]
    step(batches[:2], batches[2], 0.025)
    copied, before = copy.deepcopy(step), state(step.net).clone()
    copied(batches[:2], batches[2], 0.025)
    assert_is_whole(copied.net)
    assert torch.equal(state(step.net), before)
    step(batches[:2], batches[2], 0.025)
    assert torch.equal(state(copied.net), state(step.net))
    assert not torch.equal(state(step.net), before)


@both
def test_the_copy_of_a_problem_is_about_its_own_network(backend):
    shape = SHAPES[1]
    problem = SupernetProblem(supernet(shape, backend), batch(shape), batch(shape, seed=3))
    copied = copy.deepcopy(problem)
    assert copied.w is copied.net.weights.flat
    assert copied.alpha is copied.net.alphas.flat
    assert torch.equal(copied.train_grad_w(), problem.train_grad_w())


@both
def test_a_discrete_network_is_copied(backend):
    network = make_network("darts", PUBLISHED["DARTS_V2"], channels=4, layers=3)
    net = build_supernet(network, backend=backend, dtype=torch.float64)
    copied = copy.deepcopy(net)
    assert_is_whole(copied)
    images = batch(SHAPES[1])[0]
    assert torch.equal(copied(images), net(images))
