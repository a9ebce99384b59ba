"""The twin without kinks: the same weights under the same names, and derivatives of every order."""

import pytest
import torch
from torch import nn

from fastnas.spaces import make_space
from fastnas.supernet import build_supernet, smooth_twin
from tests.supernet.networks import SPACES, batch


def made(space, backend="reference"):
    torch.manual_seed(0)
    description = make_space(space, channels=4, layers=3 if space == "darts" else 1)
    return build_supernet(description, backend=backend, dtype=torch.float64)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_it_has_the_weights_under_the_same_names(space, backend):
    net = made(space, backend)
    state = torch.get_rng_state()
    twin = smooth_twin(net)
    assert torch.equal(torch.get_rng_state(), state)
    for mine, its in ((twin.weights, net.weights), (twin.alphas, net.alphas), (twin.running, net.running)):
        assert list(mine.tensors) == list(its.tensors)
        assert torch.equal(mine.flat, its.flat)
        assert mine.flat.data_ptr() != its.flat.data_ptr()


@pytest.mark.parametrize("space", SPACES)
def test_nothing_in_it_has_a_kink(space):
    twin = smooth_twin(made(space))
    assert not [m for m in twin.modules() if isinstance(m, nn.ReLU | nn.MaxPool2d)]


@pytest.mark.parametrize("space", SPACES)
def test_a_difference_across_any_direction_is_of_second_order(space):
    """On the twin the error of a central difference falls as the square of the step; on the network it does not."""

    def errors(net):
        generator = torch.Generator().manual_seed(1)
        images, labels = batch((space, 4, 3, 4, (8, 8)))
        u = torch.randn(len(net.weights), generator=generator, dtype=torch.float64)
        u /= u.norm()

        def gradient(at):
            with torch.no_grad():
                net.weights.flat.copy_(at)
            loss = nn.functional.cross_entropy(net(images), labels)
            grads = torch.autograd.grad(loss, net.weights.leaves, create_graph=True, materialize_grads=True)
            return torch.cat([grad.flatten() for grad in grads])

        net.train()
        w = net.weights.flat.clone()
        slope = gradient(w) @ u
        exact = torch.cat([g.flatten() for g in torch.autograd.grad(slope, net.weights.leaves)])
        found = []
        for step in (1e-2, 1e-3):
            difference = (gradient(w + step * u) - gradient(w - step * u)).detach() / (2 * step)
            found.append(((difference - exact).norm() / exact.norm()).item())
        return found

    kinked, smooth = errors(made(space)), errors(smooth_twin(made(space)))
    assert smooth[1] == pytest.approx(smooth[0] / 100, rel=0.1)
    assert kinked[1] > 100 * smooth[1]
