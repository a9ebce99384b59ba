"""Recurrent networks: against numpy, one executor against the other, masks, and the hypergradients' invariants."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastnas.bilevel import METHODS, InnerSettings, InnerSgd, Products, Trajectory
from fastnas.search.step import SearchStep
from fastnas.spaces.recurrent import Dropout, RecurrentGenotype, network, supernet
from fastnas.supernet import SupernetProblem, build_recurrent, gradients, mean_loss

NONE = Dropout(0, 0, 0, 0, 0)
SOME = Dropout(0.3, 0.25, 0.5, 0.2, 0.1)
GENOTYPE = RecurrentGenotype((("tanh", 0), ("relu", 1), ("sigmoid", 0), ("identity", 2)), (1, 3, 4))


def make(space, backend="fused", dtype=torch.float64):
    """Weights large enough for every activation to bend; alpha not uniform."""
    torch.manual_seed(1)
    net = build_recurrent(space, backend=backend, dtype=dtype)
    with torch.no_grad():
        net.weights.flat.copy_(torch.randn(len(net.weights), dtype=torch.float64) / 2)
        net.alphas.flat.copy_(torch.randn(len(net.alphas), dtype=torch.float64))
        net.running.flat.copy_(torch.rand(len(net.running), dtype=torch.float64) + 0.5)
    return net


def batch(words=5, length=3, count=4, units=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(words, (length, count), generator=generator),
        torch.randn(count, units, generator=generator, dtype=torch.float64),
        torch.randint(words, (length * count,), generator=generator),
    )


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


FUNCTIONS = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0), "sigmoid": sigmoid, "identity": lambda x: x}


def by_hand(net, words, hidden):
    """The equations of Liu et al. 2019 in numpy, without dropout: logits and the last hidden state."""
    w = {name: tensor.detach().numpy() for name, tensor in net.weights.tensors.items()}
    space, h, logits = net.space, hidden.numpy(), []

    def normalised(s):
        if not space.normalise:
            return s
        if net.training:
            mean, variance = s.mean(0), s.var(0)
        else:
            mean, variance = (net.running[f"norm.running_{name}"].numpy() for name in ("mean", "var"))
        return (s - mean) / np.sqrt(variance + 1e-5)

    def halves(x):
        return sigmoid(x[:, : space.units]), x[:, space.units :]

    for row in words.numpy():
        c, value = halves(np.concatenate([w["embedding"][row], h], 1) @ w["entry"])
        states = [normalised(h + c * (np.tanh(value) - h))]
        for target in range(1, space.nodes + 1):
            node = 0
            for i, edge in enumerate(space.edges):
                if edge.target != target:
                    continue
                s = states[edge.source]
                c, value = halves(s @ w["nodes"][target - 1])
                p = net.alphas["cell"][i].softmax(-1).tolist() if space.alphas else [1.0]
                for weight, name in zip(p, edge.primitives, strict=True):
                    if name != "none":
                        node = node + weight * (s + c * (FUNCTIONS[name](value) - s))
            states.append(normalised(node))
        h = np.mean([states[i] for i in space.output], 0)
        logits.append(h @ w["embedding"].T + w["bias"])
    return np.concatenate(logits), h


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("backend", ["reference", "fused"])
@pytest.mark.parametrize(
    "space",
    [supernet(3, words=5, dropout=NONE), network(GENOTYPE, 3, words=5, dropout=NONE)],
    ids=["supernet", "discrete"],
)
def test_the_equations(space, backend, training):
    net, (words, hidden, _) = make(space, backend).train(training), batch()
    with net.frozen_statistics():
        logits = net(words, hidden)
    wanted, last = by_hand(net, words, hidden)
    np.testing.assert_allclose(logits.detach().numpy(), wanted, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(net.carried()[0].numpy(), last, rtol=1e-10, atol=1e-11)


def test_the_executors_agree():
    """Value, gradients and running statistics, dropout and all."""
    results = []
    for backend in ("fused", "reference"):
        net, (words, hidden, targets) = make(supernet(3, words=5, dropout=SOME), backend), batch()
        torch.manual_seed(3)
        logits = net(words, hidden)
        penalty = net.penalty(targets)
        loss = torch.nn.functional.cross_entropy(logits, targets) + penalty
        results.append([logits.detach(), penalty.detach(), *gradients(loss, net.weights, net.alphas)])
        results[-1] += [net.running.flat]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_slowness_is_the_mean_square_of_steps():
    net = make(network(GENOTYPE, 3, words=5, dropout=NONE, slowness=0.5))
    words, hidden, targets = batch()
    outputs = [hidden]
    for row in words.split(1):
        outputs.append(torch.from_numpy(by_hand(net, row, outputs[-1])[1]))
    steps = torch.stack([after - before for before, after in itertools.pairwise(outputs[1:])])
    net(words, hidden)
    torch.testing.assert_close(net.penalty(targets).detach(), 0.5 * steps.square().mean())
    net.eval()(words, hidden)
    assert net.penalty(targets) is None


def test_one_mask_for_all_time_steps(monkeypatch):
    """Each of units is dropped or kept throughout, scaled by 1 / (1 - p)."""
    net = make(network(GENOTYPE, 64, words=5, dropout=Dropout(0, 0, 0.75, 0, 0)))
    seen, unrolled = [], net.unrolled
    monkeypatch.setattr(net, "unrolled", lambda inputs, *rest: seen.append(inputs) or unrolled(inputs, *rest))
    words, hidden, _ = batch(units=64, length=6)
    net(words, hidden)
    scales = seen[0] / net.embedding[words]
    assert torch.allclose(scales, scales[:1].expand_as(scales))
    assert {round(x, 6) for x in scales[0].flatten().tolist()} == {0.0, 4.0}
    assert 0.6 < (scales[0] == 0).double().mean() < 0.9


@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_both_sides_of_a_difference_see_the_same_masks(backend, monkeypatch):
    net = make(supernet(3, words=5, dropout=SOME), backend)
    drawn, masks = [], net._masks
    monkeypatch.setattr(net, "_masks", lambda streams: drawn.append(masks(streams)) or drawn[-1])
    problem = SupernetProblem(net, batch(), batch(seed=1))
    torch.manual_seed(5)
    Products().of(problem).mixed(torch.ones_like(net.weights.flat))
    assert len(drawn) == 2
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert any((mask == 0).any() for mask in drawn[0].values())
    net(*batch()[:2])  # the state is that of the seed still: the oracles took nothing from it
    assert torch.equal(drawn[0]["state"], drawn[2]["state"])


@pytest.mark.parametrize("name", METHODS)
def test_hypergradients_leave_no_trace(name):
    """Weights, alpha, statistics and random state to the bit; and the hypergradient is a number."""
    net = make(supernet(2, words=4, dropout=SOME))
    train, val = batch(4, units=2), batch(4, units=2, seed=1)
    problem = SupernetProblem(net, train, val)
    trajectory = Trajectory(InnerSgd(0.1))
    if METHODS[name].recorded_steps(InnerSettings(0.1), 1):
        trajectory.record(problem)
    settings = InnerSettings(0.1, clip=0.25, trajectory=trajectory, damping=0.1, limit=2, rank=2)
    before = [t.clone() for t in (net.weights.flat, net.alphas.flat, net.running.flat, torch.get_rng_state())]
    grad = METHODS[name].hypergradient(problem, settings)
    after = [net.weights.flat, net.alphas.flat, net.running.flat, torch.get_rng_state()]
    assert grad.shape == (180,)
    assert grad.isfinite().all()
    assert grad.abs().max() > 0
    moves = {0} if METHODS[name].moves_weights else set()
    assert all(
        torch.equal(a, b) for i, (a, b) in enumerate(zip(before, after, strict=True)) if i not in moves
    )


def test_exact_products_are_the_smooth_limit_of_differences():
    """Nodes of tanh, sigmoid and identity alone have no kinks: the difference tends to the exact product."""
    net = make(supernet(2, words=4, dropout=NONE))
    with torch.no_grad():
        net.alphas["cell"][:, 2] = -80  # relu
    problem = SupernetProblem(net, batch(4, units=2), batch(4, units=2, seed=1))
    assert problem.exact_by == "double backward"
    u = torch.randn(len(net.weights), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for product in ("hessian", "mixed"):
        exact = getattr(Products("exact", "exact").of(problem), product)(u)
        rough = getattr(Products(radius=1e-4).of(problem), product)(u)
        torch.testing.assert_close(rough, exact, rtol=1e-5, atol=1e-7)
    # The penalty belongs to the training loss and to its products.
    plain = SupernetProblem(make(replace(net.space, slowness=0.0)), problem.train, problem.val)
    plain.alpha.copy_(problem.alpha)
    assert not torch.equal(plain.train_grad_w(), problem.train_grad_w())
    assert torch.equal(plain.val_grads()[0], problem.val_grads()[0])


@pytest.mark.parametrize("method", ["darts", "idarts", "idarts-release"])
def test_hidden_states_are_carried_along(method):
    """A weight step begins where the one before ended; the hypergradient's batches with their own stream's state."""
    net = make(supernet(3, words=5, dropout=NONE))
    states = {stream: net.initial_state(4) for stream in ("train", "val")}
    settings = InnerSettings(0.01, clip=0.25, neumann_terms=1)
    step = SearchStep(net, METHODS[method], settings, grad_clip=0.25, states=states)
    (words, _, targets), (val_words, _, val_targets) = batch(), batch(seed=1)
    seen, forward = [], net.forward

    def watched(words, hidden):
        logits = forward(words, hidden)
        seen.append((words, hidden.clone(), net.carried()[0].clone()))
        return logits

    net.forward = watched
    step([(words, targets), (words, targets)], (val_words, val_targets), 0.01)
    of_train = [(begin, end) for its, begin, end in seen if its is words]
    of_val = [(begin, end) for its, begin, end in seen if its is val_words]
    assert all(not begin.any() for begin, _ in of_val)
    assert torch.equal(step.states["val"], of_val[-1][1])
    if method == "darts":  # whose last pass is the last weight step
        assert torch.equal(step.states["train"], of_train[-1][1])
    begins = {tuple(begin.flatten().tolist()) for begin, _ in of_train}
    assert len(begins) == 2  # zeros, and what the first of the two batches left
    assert step.states["train"].any()
    step.begin_epoch()
    assert not step.states["train"].any()
    assert not step.states["val"].any()
    copy.deepcopy(step)  # nothing in it hangs on a graph


def test_the_loss_of_a_text_does_not_depend_on_its_windows():
    net = make(network(GENOTYPE, 3, words=5, dropout=SOME))
    words = torch.randint(5, (9, 2), generator=torch.Generator().manual_seed(2))

    def windows(length):
        return [(words[i : i + length], words[i + 1 : i + 1 + length].flatten()) for i in range(0, 8, length)]

    found = [mean_loss(net, windows(length), lambda: None) for length in (8, 4, 1)]
    np.testing.assert_allclose(found, found[0], rtol=1e-12)
    assert net.training
