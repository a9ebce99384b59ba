"""The reference executor, and the supernet as a bilevel problem: a hypergradient leaves no trace."""

import pytest
import torch
import torch.nn.functional as F

from fastnas import FastnasError
from fastnas.bilevel import METHODS, InnerSettings, InnerSgd, Trajectory, Watch
from fastnas.spaces import CellString, make_network, make_space, read_genotype
from fastnas.supernet import BACKENDS, SupernetProblem, build_supernet, gradients

SPACES = {
    "darts": make_space("darts", channels=4, layers=3, image_channels=2, classes=5),
    "nasbench201": make_space("nasbench201", channels=4, layers=1, image_channels=2, classes=5),
}


def supernet(space="darts", backend="reference", dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return build_supernet(SPACES[space], backend=backend, dtype=dtype)


def batch(size=3, side=8, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 2, side, side, generator=generator, dtype=dtype)
    return images, torch.randint(0, 5, (size,), generator=generator)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("side", [8, 9, 13])
def test_any_image_size(space, side):
    net = supernet(space)
    assert net(batch(side=side)[0]).shape == (3, 5)


def test_a_node_is_the_softmax_weighted_sum_of_its_branches():
    net = supernet("nasbench201").eval()
    with torch.no_grad():
        net.alphas.flat.normal_()
    images = batch()[0]
    stem = net.stages[0](images)
    cell, weights = net.stages[1], net.alphas["cell"].softmax(-1)
    names = SPACES["nasbench201"].alphas[0].primitives

    def edge(row, x):
        return sum(weights[row, names.index(name)] * op(x) for name, op in cell.edges[row].items())

    one = edge(0, stem)
    two = edge(1, stem) + edge(2, one)
    three = edge(3, stem) + edge(4, one) + edge(5, two)
    torch.testing.assert_close(cell([stem], weights, net.node), three)


def test_softmax_mixes_none_in_with_weight_but_without_value():
    """All weight on none: cells give zero, and only the head's bias is left."""
    net = supernet("darts").eval()
    with torch.no_grad():
        for alpha in net.alphas.tensors.values():
            alpha.fill_(-1000.0)[:, 0] = 1000.0
    images = batch()[0]
    torch.testing.assert_close(net(images), net.stages[-1][-1].bias.expand(3, 5))


def test_the_reference_is_differentiable_twice():
    net, (images, labels) = supernet("nasbench201"), batch()
    leaves = [*net.weights.tensors.values()]
    loss = F.cross_entropy(net(images), labels)
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    second = torch.autograd.grad(sum((g**2).sum() for g in first), leaves)
    assert all(torch.isfinite(g).all() for g in second)
    assert max(g.abs().max() for g in second) > 0


@pytest.mark.parametrize("name", ["DARTS_V1", "NASNet", "AmoebaNet"])
def test_published_genotypes_run(name):
    space = make_network("darts", read_genotype("darts", name), channels=4, layers=4)
    net = build_supernet(space)
    assert len(net.alphas) == 0
    assert net(torch.randn(2, 3, 16, 16)).shape == (2, 10)


def test_a_cell_of_none_is_zero():
    net = build_supernet(make_network("nasbench201", CellString(("none",) * 6), channels=4, layers=1)).eval()
    images = torch.randn(2, 3, 8, 8)
    assert torch.isfinite(net(images)).all()
    assert net.stages[1]([net.stages[0](images)], None, net.node).abs().max() == 0


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("exact", "idarts-release")])
def test_a_hypergradient_leaves_no_trace(space, backend, method):
    net = supernet(space, backend, torch.float32)
    # Dropout makes the network random: the state of the generator must survive, too.
    net.stages[0].append(torch.nn.Dropout(0.5))
    net.eval()
    train, val = batch(dtype=torch.float32), batch(dtype=torch.float32, seed=2)
    momentum = torch.randn_like(net.weights.flat)
    before = [net.weights.flat.clone(), net.alphas.flat.clone(), net.running.flat.clone(), momentum.clone()]
    state = torch.get_rng_state()
    trajectory = Trajectory(InnerSgd(0.1, 0.9, 3e-4, clip=5.0))
    trajectory.record(SupernetProblem(net, val, val))
    settings = InnerSettings(
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=3e-4,
        momentum_buffer=momentum,
        limit=2,
        rank=2,
        trajectory=trajectory,
        watch=Watch(),
    )
    found = METHODS[method].hypergradient(SupernetProblem(net, train, val), settings)
    assert found.shape == net.alphas.flat.shape
    assert found.abs().max() > 0
    after = [net.weights.flat, net.alphas.flat, net.running.flat, momentum]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert not net.training


def test_oracles_see_the_same_dropout_mask():
    net = supernet()
    net.stages[0].append(torch.nn.Dropout(0.5))
    problem = SupernetProblem(net, batch(), batch(seed=2))
    assert torch.equal(problem.train_grad_w(), problem.train_grad_w())


def test_oracles_are_the_gradients_of_the_two_losses():
    net = supernet()
    train, val = batch(), batch(seed=2)
    problem = SupernetProblem(net, train, val)
    net.train()
    expected = gradients(F.cross_entropy(net(val[0]), val[1]), net.weights, net.alphas)
    assert all(torch.equal(a, b) for a, b in zip(problem.val_grads(), expected, strict=True))
    assert torch.equal(problem.val_grad_alpha(), expected[1])
    expected = gradients(F.cross_entropy(net(train[0]), train[1]), net.weights, net.alphas)
    assert torch.equal(problem.train_grad_w(), expected[0])
    assert torch.equal(problem.train_grad_alpha(), expected[1])


def test_oracles_run_without_tf32_and_repeat_to_the_bit():
    seen, cudnn = [], torch.backends.cudnn

    def loss(logits, labels):
        seen.append((cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, cudnn.deterministic))
        return F.cross_entropy(logits, labels)

    cudnn.allow_tf32 = True
    problem = SupernetProblem(supernet(), batch(), batch(seed=2), loss)
    for oracle in (problem.train_grad_w, problem.train_grad_alpha, problem.val_grads):
        oracle()
    assert seen == [(False, False, True)] * 3
    assert (cudnn.allow_tf32, cudnn.deterministic) == (True, False)


def test_running_statistics_move_in_weight_passes_only():
    net, (images, _) = supernet(), batch()
    before = net.running.flat.clone()
    with net.frozen_statistics():
        net(images)
    assert torch.equal(net.running.flat, before)
    net(images)
    assert not torch.equal(net.running.flat, before)


def test_batchnorm_is_torchs():
    net = supernet("nasbench201")
    ours, theirs = net.stages[0][1], torch.nn.BatchNorm2d(4).double()
    x = 3 + torch.randn(5, 4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_an_unknown_backend_is_one_sentence():
    with pytest.raises(FastnasError, match="unknown backend 'fast'; known are fused, reference"):
        build_supernet(SPACES["darts"], backend="fast")
