"""The operator that made the first NaN or infinity of a pass is named, in every executor and both ways."""

import re

import pytest
import torch
import torch.nn.functional as F

from fastnas.bilevel import NotFiniteError
from fastnas.spaces import make_space
from fastnas.spaces.recurrent import Dropout, supernet
from fastnas.supernet import AnomalyError, SupernetProblem, build_recurrent, build_supernet
from fastnas.supernet.anomaly import account, first_operator, random_state, step_watched

SIZES = {"darts": {"channels": 4, "layers": 3}, "nasbench201": {"channels": 4, "layers": 1}}
HUGE = 3e38


class Pass:
    """A network, a batch and the loss of one on the other."""

    def __init__(self, space="darts", backend="fused"):
        torch.manual_seed(0)
        self.net = build_supernet(make_space(space, **SIZES[space]), backend=backend)
        self.batch = {"the images": torch.randn(4, 3, 8, 8), "the labels": torch.randint(0, 10, (4,))}
        self.random = random_state(self.net)

    def loss(self):
        images, labels = self.batch.values()
        return F.cross_entropy(self.net(images), labels)

    def account(self, quantity="loss"):
        return account(self.net, self.loss, self.batch, self.random, quantity)

    def operator(self):
        return first_operator(self.net, self.loss, self.random)


class TextPass(Pass):
    def __init__(self, backend):
        torch.manual_seed(0)
        rates = Dropout(0.1, 0.1, 0.1, 0.1, 0.1)
        self.net = build_recurrent(supernet(6, words=20, dropout=rates), backend=backend)
        words, targets = torch.randint(0, 20, (5, 4)), torch.randint(0, 20, (20,))
        self.batch = {"the words": words, "the hidden state": torch.zeros(4, 6), "the targets": targets}
        self.random = random_state(self.net)

    def loss(self):
        words, hidden, targets = self.batch.values()
        return F.cross_entropy(self.net(words, hidden), targets) + self.net.penalty(targets)


@pytest.fixture(params=["fused", "reference"])
def backend(request):
    return request.param


@pytest.mark.parametrize(
    ("space", "primitive", "place"),
    [
        ("darts", "stages.2.edges.7.sep_conv_5x5.", "stages.2.edges.7.sep_conv_5x5.1 (edge 2 -> 4)"),
        ("nasbench201", "stages.3.edges.3.nor_conv_1x1.", "stages.3.edges.3.nor_conv_1x1.1 (edge 0 -> 3)"),
    ],
)
def test_a_primitive_that_overflows_is_named(space, primitive, place, backend):
    found = Pass(space, backend)
    for name, weight in found.net.weights.tensors.items():
        if name.startswith(primitive):
            weight.data.fill_(HUGE)
    wanted = f"the loss, first in the output of aten::convolution in {place} (forward pass)"
    assert found.account() == wanted


def test_a_gradient_that_overflows_is_named(backend):
    found = Pass(backend=backend)

    def hook(module, inputs):
        inputs[0].register_hook(lambda grad: grad / grad.abs().max() * HUGE)

    found.net.stages[-1].register_forward_pre_hook(hook)
    place = r"stages\.3\.edges\.\d+\.\w+\.\d \(edge \d -> 5\)"
    operator = rf"first in the output of aten::\w+_backward in {place} \(backward pass\)"
    assert re.fullmatch(f"the gradient of stages.0.0.weight, {operator}", found.account("gradient"))


@pytest.mark.parametrize("kind", ["weights", "architecture parameters", "statistic"])
def test_what_the_pass_began_with_is_named(kind, backend):
    found = Pass(backend=backend)
    arenas = {"weights": found.net.weights, "architecture parameters": found.net.alphas}
    arena = arenas.get(kind, found.net.running)
    name = list(arena.tensors)[-1]
    arena[name].data.view(-1)[-1] = torch.inf
    assert found.account() == f"the loss, and before the step in the {kind} {name}"


def test_what_the_pass_read_is_named(backend):
    found = Pass(backend=backend)
    found.batch["the images"][2, 0, 3, 3] = torch.nan
    assert found.account("gradient") == "the gradient, and before the step in the images"
    found = TextPass(backend)
    found.batch["the hidden state"][0, 0] = torch.inf
    assert found.account() == "the loss, and before the step in the hidden state"


def test_a_statistic_that_overflows_is_named(backend):
    """Its values go on through the normalisation, which divides by infinity: nothing else tells."""
    found = Pass("nasbench201", backend)
    found.net.weights["stages.1.edges.0.nor_conv_1x1.1.weight"].data.mul_(1e30)
    name = "stages.1.edges.0.nor_conv_1x1.2.running_var"
    assert found.account("statistics").startswith(f"the statistic {name}")
    assert found.net.running.flat.isfinite().all()


def test_a_time_step_of_text_is_named(backend):
    found = TextPass(backend)
    found.net.nodes.data[2] = HUGE
    wanted = "the loss, first in the output of aten::mm in time step 1 (forward pass)"
    assert found.account() == wanted


def test_a_node_of_text_is_named(backend, monkeypatch):
    found, count = TextPass(backend), [0]
    inner = type(found.net).node

    def node(net, mixing, sources, raw):
        count[0] += 1
        return inner(net, mixing, sources, raw * (torch.inf if count[0] == 8 + 3 else 1.0))

    monkeypatch.setattr(type(found.net), "node", node)
    assert found.operator() == "first in the output of aten::mul in time step 2, node 3 (forward pass)"


@pytest.mark.parametrize("make", [Pass, lambda backend: Pass("nasbench201", backend), TextPass])
def test_a_finite_pass_is_none_whatever_fresh_memory_holds(make, backend, monkeypatch):
    """And nothing has moved: statistics, generators, mode."""
    found = make(backend=backend)
    net = found.net
    net.eval()
    before = [net.running.flat.clone(), torch.get_rng_state()]
    torch.use_deterministic_algorithms(True)  # it fills fresh memory with NaN
    try:
        assert found.operator() is None
    finally:
        torch.use_deterministic_algorithms(False)
    assert (
        found.account("gradient")
        == "the gradient, but not when the step was tried once more (see --detect-anomaly)"
    )
    assert not net.training
    assert all(map(torch.equal, before, [net.running.flat, torch.get_rng_state()]))
    assert not {"cell", "block", "node", "_highway"} & set(vars(net))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_the_same_random_numbers_are_drawn_again():
    """A loss that overflows for one draw in two is found again whatever was drawn since."""
    found = Pass("nasbench201", "reference")
    loss = found.loss
    found.loss = lambda: loss() * (torch.inf if torch.rand(()) < 0.5 else 1.0)
    states = []
    for seed in range(4):
        torch.manual_seed(seed)
        found.random, overflows = random_state(found.net), bool(torch.rand(()) < 0.5)
        states.append(overflows)
        assert (found.operator() is not None) == overflows
    assert {True, False} == set(states)


def test_a_watched_step_says_that_it_was_not_made():
    found = Pass()
    found.net.weights.flat[0] = torch.nan
    with (
        pytest.raises(
            NotFiniteError, match=r"^NaN or infinity before the step in the weights stages.0.0.weight, so"
        ),
        step_watched(True, found.net, found.loss, found.batch),
    ):
        found.loss()
    with step_watched(False, found.net, found.loss, found.batch):
        assert found.loss().isnan()


@pytest.mark.parametrize("oracle", ["train_grad_w", "train_grad_alpha", "val_grads", "train_hessian_product"])
def test_an_oracle_may_look_at_its_operators(oracle, backend):
    found = Pass("nasbench201", backend)
    batch = tuple(found.batch.values())
    arguments = [torch.ones(len(found.net.weights))] if "product" in oracle else []
    plain = getattr(SupernetProblem(found.net, batch, batch), oracle)(*arguments)
    problem = SupernetProblem(found.net, batch, batch, detect_anomaly=True)
    looked_at = getattr(problem, oracle)(*arguments)
    for one, other in zip(*(x if isinstance(x, tuple) else (x,) for x in (plain, looked_at)), strict=True):
        assert torch.equal(one, other)
    found.net.weights["stages.1.edges.0.nor_conv_1x1.1.weight"].data.fill_(HUGE)
    with pytest.raises(AnomalyError, match=r"convolution in stages.1.edges.0.nor_conv_1x1.1 \(edge 0 -> 1\)"):
        getattr(problem, oracle)(*arguments)
