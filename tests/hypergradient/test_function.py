"""fastnas.hypergradient: every method through live modules, weight steps, errors, what it leaves as it was."""

import warnings

import pytest
import torch
from torch import nn

import fastnas
from fastnas import FastnasError
from fastnas.bilevel import (
    METHODS,
    HypergradientWarning,
    InnerSettings,
    InnerSgd,
    NotFiniteError,
    Products,
    Watch,
    implicit,
    unroll,
)
from fastnas.bilevel.solvers import dense
from tests.hypergradient.networks import Setting, same_bits

EXACT = Products("exact", "exact")
SGD = InnerSgd(0.1, momentum=0.5, weight_decay=0.1)


def flat(grads):
    return torch.cat([grad.flatten() for grad in grads])


def hypergradient(setting, **arguments):
    return fastnas.hypergradient(
        setting.train_loss, setting.val_loss, setting.model, setting.outer, **({"watch": Watch()} | arguments)
    )


def reference(setting, name, steps, products):
    """The same by the table of methods, on functions of flat vectors."""
    problem, buffer = setting.functions(), torch.zeros(83, dtype=torch.float64)
    settings = {
        "learning_rate": 0.1,
        "momentum": 0.5,
        "weight_decay": 0.1,
        "momentum_buffer": buffer,
        "eta": 0.2,
        "gamma": 0.05,
        "neumann_terms": 3,
        "products": products,
        "tolerance": 1e-8,
        "limit": 6,
        "damping": 0.5,
        "rank": 7,
        "reverse_steps": 2,
        "watch": Watch(),
    }
    trajectory = unroll(problem, SGD, steps, momentum_buffer=buffer)
    return METHODS[name].hypergradient(problem, InnerSettings(**settings, trajectory=trajectory))


CONSTANTS = {
    "inner_optimiser": SGD,
    "eta": 0.2,
    "gamma": 0.05,
    "neumann_terms": 3,
    "tolerance": 1e-8,
    "limit": 6,
    "damping": 0.5,
    "rank": 7,
    "reverse_steps": 2,
}


@pytest.mark.parametrize("products", [Products(), EXACT], ids=["difference", "exact"])
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_that_of_the_table(name, steps, products):
    if "reverse" in name and not steps:
        pytest.skip("no steps to go back through")
    setting = Setting()
    before, addresses = setting.everything(), setting.addresses()
    got = hypergradient(setting, method=name, steps=steps, products=products, **CONSTANTS)
    wanted = reference(setting, name, steps, products)
    assert [grad.shape for grad in got] == [(2, 3), ()]
    assert not any(grad.requires_grad for grad in got)
    # A difference divides what rounding leaves of its gradients by twice its step.
    tolerance = 1e-9 if products is EXACT and name != "idarts-release" else 1e-6
    assert (flat(got) - wanted).norm() <= tolerance * wanted.norm()
    assert same_bits(before, setting.everything())
    assert setting.addresses() == addresses


def test_defaults_are_conjugate_gradients_with_exact_products():
    setting = Setting()
    with torch.no_grad():
        setting.decay.fill_(0.0)  # convex
    got = hypergradient(setting, watch=None)
    assert same_bits(got, hypergradient(setting, method="cg", products=EXACT, tolerance=1e-3, limit=20))


def test_any_solver():
    setting = Setting()
    got = hypergradient(setting, method=dense(damping=0.3))
    wanted = implicit(setting.functions(), solve=dense(damping=0.3), products=EXACT)
    torch.testing.assert_close(flat(got), wanted, rtol=1e-9, atol=1e-12)
    doubled = hypergradient(setting, method=lambda matvec, b: 2 * dense(damping=0.3)(matvec, b))
    direct = hypergradient(setting, method="first-order")
    torch.testing.assert_close(
        flat(doubled) - flat(direct), 2 * (flat(got) - flat(direct)), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("method", ["reverse", "truncated-reverse"])
def test_a_training_loss_for_each_step(method):
    """Reverse mode through three minibatches, against autograd through the steps written out."""
    setting, last = Setting(), {"reverse": 3, "truncated-reverse": 2}[method]
    masks = torch.rand(3, 20, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def batch_loss(model, x, y, scale, decay, mask):
        penalty = sum(p.square().sum() for p in model.values())
        hidden = (x * scale.exp().flatten() * mask) @ model["0.weight"].T + model["0.bias"]
        logits = hidden.tanh() @ model["2.weight"].T + model["2.bias"]
        return nn.functional.cross_entropy(logits, y) + decay.exp() * penalty

    def closure(mask):
        return lambda: batch_loss(
            dict(setting.model.named_parameters()), setting.x, setting.y, *setting.outer, mask
        )

    got = fastnas.hypergradient(
        [closure(mask) for mask in masks],
        setting.val_loss,
        setting.model,
        setting.outer,
        method=method,
        inner_optimiser=SGD,
        reverse_steps=2,
    )
    outer = [tensor.detach().clone().requires_grad_() for tensor in setting.outer]
    weights = {name: p.detach().clone().requires_grad_() for name, p in setting.model.named_parameters()}
    buffers = {name: torch.zeros_like(p) for name, p in weights.items()}
    for step, mask in enumerate(masks):
        if step == 3 - last:  # what was before is held fixed
            weights = {name: p.detach().requires_grad_() for name, p in weights.items()}
            buffers = {name: b.detach() for name, b in buffers.items()}
        loss = batch_loss(weights, setting.x, setting.y, *outer, mask)
        grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        for (name, p), grad in zip(list(weights.items()), grads, strict=True):
            buffers[name] = 0.5 * buffers[name] + grad + 0.1 * p
            weights[name] = p - 0.1 * buffers[name]
    end = batch_loss(weights, setting.x_val, setting.y_val, outer[0], outer[1], torch.ones(1).double())
    end = end - outer[1].exp() * sum(p.square().sum() for p in weights.values())
    for one, other in zip(
        got, torch.autograd.grad(end, outer, allow_unused=True, materialize_grads=True), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_keep_leaves_the_weights_where_the_steps_led():
    setting, plain = Setting(nn.BatchNorm1d(8)), Setting(nn.BatchNorm1d(8))
    buffers = [buffer.clone() for buffer in setting.model.buffers()]
    optimiser = torch.optim.SGD(plain.model.parameters(), 0.1, momentum=0.5, weight_decay=0.1)
    for _ in range(4):
        optimiser.zero_grad()
        plain.train_loss().backward()
        optimiser.step()
    addresses = setting.addresses()
    hypergradient(setting, method="reverse", inner_optimiser=SGD, steps=4, keep=True)
    assert setting.addresses() == addresses
    for one, other in zip(setting.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    assert same_bits(buffers, list(setting.model.buffers()))


def test_keep_keeps_nothing_when_it_fails():
    setting = Setting()
    before = setting.everything()
    with pytest.raises(FastnasError):
        hypergradient(setting, method="reverse", inner_optimiser=InnerSgd(1e300), steps=4, keep=True)
    assert same_bits(before, setting.everything())


def test_accumulates_like_backward():
    setting = Setting()
    grads = hypergradient(setting, accumulate=True)
    assert same_bits(grads, [tensor.grad for tensor in setting.outer])
    assert all(p.grad is None for p in setting.model.parameters())
    grads[0].zero_()  # the caller's own
    assert setting.scale.grad.abs().sum() > 0
    again = hypergradient(setting, accumulate=True)
    for tensor, grad in zip(setting.outer, again, strict=True):
        torch.testing.assert_close(tensor.grad, 2 * grad)


def test_outer_may_be_a_module_and_inner_a_tensor():
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    prior = nn.Linear(1, 3, bias=False).double()

    def train_loss():
        return (w - prior.weight[:, 0]).square().sum()  # w* = the prior's weight

    def val_loss():
        return (w - 1).square().sum()

    with torch.no_grad():
        w.copy_(prior.weight[:, 0])
    (grad,) = fastnas.hypergradient(train_loss, val_loss, w, prior)
    assert grad.shape == (3, 1)
    torch.testing.assert_close(grad[:, 0], 2 * (w.detach() - 1))


def test_warnings_point_at_the_caller():
    setting = Setting()
    for arguments in ({"method": "cg"}, {"method": "idarts", "gamma": 50.0, "neumann_terms": 3}):
        with torch.no_grad():
            setting.decay.fill_(-20.0)  # hardly convex
        with pytest.warns(HypergradientWarning) as caught:
            hypergradient(setting, watch=None, **arguments)
        assert [entry.filename for entry in caught] == [__file__]


def test_a_watch_in_place_of_warnings():
    setting, watch = Setting(), Watch()
    with warnings.catch_warnings():
        warnings.simplefilter("error", HypergradientWarning)
        hypergradient(setting, method="idarts", gamma=50.0, neumann_terms=3, watch=watch)
    assert [sentence.split(":")[0] for sentence in watch.sentences()] == ["idarts"]


@pytest.mark.parametrize(
    ("spoil", "oracle"), [("train", "train_grad_w (dL1/dw)"), ("val", "val_grads (dL2/dw and dL2/dalpha)")]
)
def test_nan_is_named(spoil, oracle):
    setting = Setting()
    losses = {"train": setting.train_loss, "val": setting.val_loss}
    nan = {name: (lambda loss=loss: loss() * float("nan")) for name, loss in losses.items()}
    losses[spoil] = nan[spoil]
    with pytest.raises(NotFiniteError) as raised:
        fastnas.hypergradient(
            losses["train"], losses["val"], setting.model, setting.outer, products=Products(), watch=Watch()
        )
    assert str(raised.value).startswith(f"the oracle {oracle} returned NaN or infinity")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "adam"}, "unknown hypergradient method 'adam': choose one of first-order, "),
        (
            {"steps": 2},
            "hypergradient: a weight step needs inner_optimiser, for example InnerSgd(learning_rate=0.1)",
        ),
        (
            {"method": "darts"},
            "hypergradient: darts needs inner_optimiser, for example InnerSgd(learning_rate=0.1)",
        ),
        (
            {"method": "idarts"},
            "hypergradient: idarts needs gamma, below 2/lambda_max of the training loss's Hessian",
        ),
        ({"method": "neumann"}, "hypergradient: neumann needs gamma, below 2/lambda_max"),
        (
            {"method": "reverse", "inner_optimiser": SGD},
            "hypergradient: reverse goes back through weight steps: give steps and inner_optimiser",
        ),
        ({"steps": -1, "inner_optimiser": SGD}, "hypergradient: steps must be an integer >= 0, got -1"),
        ({"method": "neumann", "gamma": -1.0}, "neumann: gamma must be a finite number > 0, got -1.0"),
        ({"damping": -1.0}, "conjugate_gradients: damping must be a finite number >= 0, got -1.0"),
        ({"method": "neumann", "gamma": "1"}, "neumann: gamma must be a finite number > 0, got '1'"),
        ({"limit": 0}, "hypergradient: limit must be an integer >= 1, got 0"),
        ({"limit": 2.5}, "hypergradient: limit must be an integer >= 1, got 2.5"),
        ({"reverse_steps": None}, "hypergradient: reverse_steps must be an integer >= 0, got None"),
        ({"method": None}, "hypergradient: method must be a name of fastnas.bilevel.METHODS or a solver"),
        ({"products": "exact"}, "hypergradient: products must be a fastnas.bilevel.Products, got str"),
        ({"products": None}, "hypergradient: products must be a fastnas.bilevel.Products, got NoneType"),
        (
            {"inner_optimiser": torch.optim.SGD([torch.zeros(1)], lr=0.1), "steps": 1},
            "hypergradient: inner_optimiser must be a fastnas.bilevel.InnerSgd, got SGD",
        ),
        (
            {"method": lambda matvec, b: b[:3]},
            "implicit: the solution of solve(matvec, b) must be a tensor like w",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    setting = Setting()
    before = setting.everything()
    with pytest.raises(FastnasError) as raised:
        hypergradient(setting, **arguments)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    assert same_bits(before, setting.everything())


@pytest.mark.parametrize(("losses", "steps", "made"), [(0, None, "any"), (2, 3, "3")])
def test_as_many_losses_as_steps(losses, steps, made):
    setting = Setting()
    with pytest.raises(FastnasError) as raised:
        fastnas.hypergradient(
            [setting.train_loss] * losses,
            setting.val_loss,
            setting.model,
            setting.outer,
            method="reverse",
            inner_optimiser=SGD,
            steps=steps,
        )
    assert str(raised.value) == (
        f"hypergradient: {losses} training losses cannot make {made} steps; give one for each step"
    )


@pytest.mark.parametrize("loss", [torch.zeros(()), torch.zeros(3), [torch.zeros(())], None])
def test_a_loss_that_was_called_already(loss):
    setting = Setting()
    with pytest.raises(FastnasError) as raised:
        fastnas.hypergradient(loss, setting.val_loss, setting.model, setting.outer)
    assert str(raised.value).startswith(
        "hypergradient: train_loss must be a function without arguments that returns"
    )


def test_a_float32_module_with_differences():
    """What most users have: single precision, and every kind of product within its own error of float64's."""
    single, double = Setting(dtype=torch.float32), Setting()
    with torch.no_grad():
        for one, other in zip(single.model.parameters(), double.model.parameters(), strict=True):
            other.copy_(one)
        for one, other in zip(single.outer, double.outer, strict=True):
            other.copy_(one)
    double.x, double.x_val = single.x.double(), single.x_val.double()
    double.y, double.y_val = single.y, single.y_val
    wanted = flat(hypergradient(double, damping=1.0, tolerance=1e-10, limit=90))
    for products, tolerance in ((EXACT, 1e-4), (Products(), 1e-2)):
        got = flat(hypergradient(single, damping=1.0, tolerance=1e-6, limit=90, products=products))
        assert (got.double() - wanted).norm() <= tolerance * wanted.norm()


def test_reverse_through_many_steps_is_implicit_differentiation():
    """Where the training loss is strongly convex: the unrolled map's derivative tends to the implicit one."""
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model, decay = nn.Linear(4, 1).double(), torch.zeros(5, dtype=torch.float64, requires_grad=True)
    target = x @ torch.ones(4, 1, dtype=torch.float64)

    def train_loss():
        weights = torch.cat([p.flatten() for p in model.parameters()])
        return (model(x[:15]) - target[:15]).square().mean() + (decay.exp() * weights**2).sum()

    def val_loss():
        return (model(x[15:]) - target[15:]).square().mean()

    arguments = {"method": "reverse", "inner_optimiser": InnerSgd(0.1), "steps": 400, "keep": True}
    (unrolled,) = fastnas.hypergradient(train_loss, val_loss, model, decay, **arguments)
    (solved,) = fastnas.hypergradient(train_loss, val_loss, model, decay, tolerance=1e-12)
    torch.testing.assert_close(unrolled, solved, rtol=1e-8, atol=1e-12)
