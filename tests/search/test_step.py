"""One search step: the optimisers' arithmetic, and the order in which a method moves weights and alpha."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import fastnas
from fastnas.bilevel import METHODS, InnerSettings, NotFiniteError, Products
from fastnas.errors import FastnasError
from fastnas.search import SearchStep
from fastnas.spaces import make_space
from fastnas.supernet import SupernetProblem, build_supernet, gradients

LR, MOMENTUM, DECAY = 0.1, 0.9, 3e-4
SETTINGS = InnerSettings(learning_rate=LR, momentum=MOMENTUM, weight_decay=DECAY)


def search_step(method="first-order", **options):
    torch.manual_seed(0)
    net = build_supernet(make_space("nasbench201", channels=4, layers=1), dtype=torch.float64)
    return SearchStep(net, METHODS[method], SETTINGS, **options)


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 10, (4,), generator=generator)


def gradient(net, part, pair):
    with net.frozen_statistics():
        return gradients(F.cross_entropy(net(pair[0]), pair[1]), part)[0]


def test_weight_steps_are_sgd_with_momentum_decay_and_clipping():
    step = search_step(grad_clip=0.5)
    net, buffer = step.net, 0
    for i in range(3):
        w = net.weights.flat.clone()
        g = gradient(net, net.weights, batch(i))
        g = g * min(1.0, 0.5 / (g.norm() + 1e-6).item())
        buffer = MOMENTUM * buffer + g + DECAY * w
        step.weight_step(batch(i), LR)
        torch.testing.assert_close(net.weights.flat, w - LR * buffer)


def test_the_alpha_step_is_adam_with_darts_betas():
    step = search_step(arch_learning_rate=3e-4, arch_weight_decay=1e-3)
    alpha = step.net.alphas.flat
    expected = torch.nn.Parameter(alpha.clone())
    adam = torch.optim.Adam([expected], lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    for i in range(3):
        expected.grad = gradient(step.net, step.net.alphas, batch(10 + i))
        norm, watch = step.alpha_step(batch(i), batch(10 + i), LR)
        assert watch.sentences() == []
        torch.testing.assert_close(norm, expected.grad.norm())
        adam.step()
        torch.testing.assert_close(alpha, expected.detach())


@pytest.mark.parametrize("method", [name for name in METHODS if name != "exact"])
def test_inner_steps_come_before_or_after_alpha_as_the_method_says(method):
    """The hypergradient is taken at the weights, and on the training batch, that the method's authors take."""
    step, train, val = search_step(method), [batch(1), batch(2)], batch(3)
    net, seen = step.net, []
    inner = step.alpha_step
    step.alpha_step = lambda *a: (seen.append((net.weights.flat.clone(), a[0])), inner(*a))[1]
    start = net.weights.flat.clone()
    report = step(train, val, LR)
    (at, on) = seen[0]
    late = METHODS[method].after_inner_steps
    assert late == (method not in ("first-order", "darts", "amended"))
    if method == "idarts-release":  # makes no weight steps, and moves the weights itself
        assert torch.equal(at, start)
    else:
        assert torch.equal(at, net.weights.flat if late else start)
    assert on is train[-1 if late else 0]
    assert not torch.equal(start, net.weights.flat)
    assert report.losses.shape == (2,)
    assert 0 <= report.correct <= 8


def test_what_is_not_finite_moves_neither_alpha_nor_its_optimiser():
    step = search_step("t1-t2")
    step([batch(1)], batch(2), LR)
    state = [step.alpha_optimiser.alpha, *step.alpha_optimiser.state().values()]
    before = [tensor.clone() for tensor in state]
    images, labels = batch(3)
    report = step([batch(1)], (images * float("nan"), labels), LR)
    assert all(torch.equal(a, b) for a, b in zip(state, before, strict=True))
    with pytest.raises(
        NotFiniteError, match=r"the oracle val_grads \(dL2/dw and dL2/dalpha\) returned NaN or infinity"
    ):
        report.watch.sentences()
    step([batch(1)], batch(2), LR)  # and goes on from there
    assert not any(torch.equal(a, b) for a, b in zip(state, before, strict=True))


def test_reverse_goes_through_the_steps_that_were_made():
    """Against the derivative of two steps of the search, each on its batch, with momentum, decay and clipping."""
    step = search_step("reverse", grad_clip=0.5)
    step.weight_step(batch(0), LR)  # a momentum buffer
    net, batches, val = step.net, [batch(1), batch(2)], batch(3)
    step.settings = replace(SETTINGS, products=Products(radius=1e-4))
    start, buffer = net.weights.flat.clone(), step.weight_optimiser.momentum_buffer.clone()
    alpha = net.alphas.flat.clone()
    found = []
    step.alpha_optimiser.step = found.append
    step(batches, val, LR)
    step.settings = SETTINGS
    direction = torch.randn(alpha.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def val_loss(shift):
        net.weights.flat.copy_(start)
        step.weight_optimiser.momentum_buffer.copy_(buffer)
        net.alphas.flat.copy_(alpha + shift * direction)
        for pair in batches:
            step.weight_step(pair, LR)
        with net.frozen_statistics(), torch.no_grad():
            return F.cross_entropy(net(val[0]), val[1])

    shift = 1e-6
    slope = (val_loss(shift) - val_loss(-shift)) / (2 * shift)
    torch.testing.assert_close(found[0] @ direction, slope, rtol=2e-3, atol=0)


def test_darts_sees_the_momentum_buffer_and_the_rate_of_the_step():
    step = search_step("darts")
    step.weight_step(batch(0), LR)
    buffer = step.weight_optimiser.momentum_buffer
    settings = InnerSettings(0.05, MOMENTUM, DECAY, momentum_buffer=buffer)
    problem = SupernetProblem(step.net, batch(1), batch(2))
    expected = METHODS["darts"].hypergradient(problem, settings)
    assert torch.equal(step.hypergradient(batch(1), batch(2), 0.05), expected)
    without = METHODS["darts"].hypergradient(problem, InnerSettings(0.05, MOMENTUM, DECAY))
    assert not torch.allclose(expected, without)


def test_gamma_defaults_to_the_current_learning_rate():
    step, pair = search_step("idarts"), (batch(1), batch(2))
    a, b = step.hypergradient(*pair, 0.05), step.hypergradient(*pair, 0.01)
    assert not torch.allclose(a, b)
    step.settings = InnerSettings(learning_rate=LR, gamma=0.05)
    assert torch.equal(step.hypergradient(*pair, 0.01), a)


@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_bfloat16_is_for_the_activations_of_weight_steps_alone(backend):
    """Weights, their gradients and the optimiser stay float32; the hypergradient is float32's to the bit."""
    results = []
    for precision in (None, torch.bfloat16):
        torch.manual_seed(0)
        net = build_supernet(make_space("nasbench201", channels=4, layers=1), backend=backend)
        step = SearchStep(net, METHODS["t1-t2"], SETTINGS, precision=precision)
        images, labels = batch(0)
        pair = images.float(), labels
        hypergradient = step.hypergradient(pair, pair, LR)
        before = net.weights.flat.clone()
        loss, _ = step.weight_step(pair, LR)
        results.append((hypergradient, loss, net.weights.flat - before, net.running.flat.clone()))
    (exact, full_loss, full_move, full_running), (same, loss, move, running) = results
    assert torch.equal(exact, same)
    assert 0 < (loss - full_loss).abs() < 0.02 * full_loss
    assert 0.9 < F.cosine_similarity(full_move, move, dim=0) < 1
    assert {tensor.dtype for tensor in (loss, move, running)} == {torch.float32}
    assert (running - full_running).norm() < 0.02 * full_running.norm()


def test_bfloat16_needs_a_gpu(tmp_path):
    with pytest.raises(FastnasError, match="--dtype bf16 needs a GPU, but this search runs on cpu"):
        fastnas.search(dtype="bf16", device="cpu", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
