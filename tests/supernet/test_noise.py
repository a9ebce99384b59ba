"""The primitive ``noise``: what it draws, and that whatever takes a difference sees the same draws on both sides."""

import pytest
import torch

from fastnas.bilevel import METHODS, InnerSettings, InnerSgd, Trajectory, Watch, hessian_vector_product
from fastnas.supernet import BACKENDS, Supernet, SupernetProblem
from fastnas.supernet.primitives import Context, Statistics, make_primitive
from tests.supernet.networks import batch, is_fused, supernet

SHAPE = ("robustdarts-s4", 4, 4, 3, (9, 11))


@pytest.mark.parametrize("stride", [1, 2])
def test_it_is_normal_noise_of_the_outputs_shape_and_passes_no_gradient_on(stride):
    torch.manual_seed(0)
    noise = make_primitive("noise", Context(8, stride, False, True, Statistics()))
    x = torch.full((50, 8, 9, 11), torch.nan, dtype=torch.float64, requires_grad=True)
    first, second = noise(x), noise(x)
    assert first.shape == x[:, :, ::stride, ::stride].shape
    assert first.dtype == x.dtype
    assert not first.requires_grad
    assert not torch.equal(first, second)
    scatter = first.numel() ** -0.5  # of the mean; of the variance 2 ** 0.5 times as much
    assert abs(first.mean()) < 4 * scatter
    assert abs(first.var() - 1) < 6 * scatter


def test_its_cells_are_fused():
    """Those that halve the image, too, though their noise has another size than their inputs."""
    assert is_fused(supernet(SHAPE, "fused"))


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_every_forward_pass_has_its_own(mode):
    for backend in BACKENDS:
        net = supernet(SHAPE, backend).train(mode == "training")
        images, _ = batch(SHAPE)
        first, second = net(images), net(images)
        assert (first - second).abs().max() > 1e-3


def test_both_sides_of_a_difference_see_the_same_noise():
    """On a network without kinks a central difference is off by r^2; other noise would be off by 1/r."""
    net = Supernet(supernet(SHAPE, "reference").space, dtype=torch.float64, smooth=True)
    problem = SupernetProblem(net, batch(SHAPE), batch(SHAPE, seed=5))
    u = torch.randn(len(net.weights), dtype=torch.float64)
    exact = problem.train_hessian_product(u)
    errors = [
        ((hessian_vector_product(problem, u, radius=radius) - exact).norm() / exact.norm()).item()
        for radius in (1e-2, 1e-3)
    ]
    assert errors[1] < 1e-4
    assert errors[1] < errors[0] / 50


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["darts", "idarts", "cg", "reverse"])
def test_a_hypergradient_leaves_no_trace_and_repeats(backend, method):
    net = supernet(SHAPE, backend)
    train, val = batch(SHAPE), batch(SHAPE, seed=5)
    before = [net.weights.flat.clone(), net.alphas.flat.clone(), net.running.flat.clone()]
    state = torch.get_rng_state()
    trajectory = Trajectory(InnerSgd(0.1, 0.9, 3e-4, clip=5.0))
    trajectory.record(SupernetProblem(net, val, val))
    settings = InnerSettings(learning_rate=0.1, limit=2, trajectory=trajectory, watch=Watch())
    hypergradient = METHODS[method].hypergradient
    first, second = (hypergradient(SupernetProblem(net, train, val), settings) for _ in range(2))
    assert torch.equal(first, second)
    assert first.abs().max() > 0
    after = [net.weights.flat, net.alphas.flat, net.running.flat]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(state, torch.get_rng_state())
