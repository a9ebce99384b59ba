"""The registry, what it passes on, and what every estimator says to a wrong argument."""

import dataclasses

import pytest
import torch

from fastnas.bilevel import (
    METHODS,
    InnerSettings,
    InnerSgd,
    Products,
    amended,
    cg,
    darts,
    exact,
    first_order,
    idarts,
    idarts_release,
    inner_steps,
    method,
    neumann,
    nystroem,
    reverse,
    t1_t2,
    truncated_reverse,
    unroll,
)
from fastnas.errors import FastnasError
from tests.bilevel.problems import Counted, QuadraticProblem

PRODUCTS = Products(radius=0.5)
BUFFER = torch.linspace(-1, 1, 4, dtype=torch.float64)
SETTINGS = InnerSettings(
    learning_rate=0.2,
    momentum=0.9,
    weight_decay=0.1,
    momentum_buffer=BUFFER,
    eta=0.3,
    gamma=0.15,
    neumann_terms=3,
    products=PRODUCTS,
    tolerance=0.02,
    limit=50,
    damping=0.05,
    rank=3,
    reverse_steps=2,
)


NAMES = [
    *("first-order", "darts", "amended", "idarts", "t1-t2", "neumann", "cg", "nystroem", "exact"),
    *("reverse", "truncated-reverse", "idarts-release"),
]


def curved():
    return QuadraticProblem(torch.tensor([0.5, 1.0, 2.0, 4.0]), curvature=0.2)


def test_public_names_in_order():
    assert list(METHODS) == NAMES
    assert all(entry.name == name for name, entry in METHODS.items())
    assert all(entry.summary and "\n" not in entry.summary for entry in METHODS.values())
    # Those whose authors' loops move alpha first; all others want the inner problem solved, or its steps.
    assert [name for name, entry in METHODS.items() if not entry.after_inner_steps] == NAMES[:3]
    assert [name for name, entry in METHODS.items() if entry.inner_steps == 1] == [*NAMES[:3], "t1-t2"]
    assert [name for name, entry in METHODS.items() if entry.moves_weights] == ["idarts-release"]


@pytest.mark.parametrize(
    ("name", "direct_call"),
    [
        ("first-order", first_order),
        (
            "darts",
            lambda p: darts(
                p,
                learning_rate=0.2,
                momentum=0.9,
                momentum_buffer=BUFFER,
                weight_decay=0.1,
                products=PRODUCTS,
            ),
        ),
        ("amended", lambda p: amended(p, eta=0.3, products=PRODUCTS)),
        ("idarts", lambda p: idarts(p, gamma=0.15, neumann_terms=3, products=PRODUCTS)),
        ("t1-t2", lambda p: t1_t2(p, products=PRODUCTS)),
        (
            "neumann",
            lambda p: neumann(p, gamma=0.15, tolerance=0.02, limit=50, damping=0.05, products=PRODUCTS),
        ),
        ("cg", lambda p: cg(p, steps=50, tolerance=0.02, damping=0.05, products=PRODUCTS)),
        ("nystroem", lambda p: nystroem(p, rank=3, damping=0.05, products=PRODUCTS)),
        ("exact", lambda p: exact(p, products=PRODUCTS)),
        ("idarts-release", lambda p: idarts_release(p, gamma=0.15, neumann_terms=3, products=PRODUCTS)),
    ],
)
def test_hypergradient_passes_its_settings_on(name, direct_call):
    # To the bit, the radius included: another radius rounds otherwise.
    assert torch.equal(METHODS[name].hypergradient(curved(), SETTINGS), direct_call(curved()))


@pytest.mark.parametrize(
    ("name", "direct_call"),
    [
        ("reverse", lambda p, steps: reverse(p, steps, products=PRODUCTS)),
        ("truncated-reverse", lambda p, steps: truncated_reverse(p, steps, last=2, products=PRODUCTS)),
    ],
)
def test_reverse_modes_pass_their_settings_on(name, direct_call):
    problem = curved()
    trajectory = unroll(problem, InnerSgd(0.1, 0.9), 4)
    settings = dataclasses.replace(SETTINGS, trajectory=trajectory)
    assert torch.equal(METHODS[name].hypergradient(problem, settings), direct_call(problem, trajectory))
    with pytest.raises(FastnasError, match=f"{name} goes back through weight steps: give InnerSettings"):
        METHODS[name].hypergradient(problem, SETTINGS)
    recorded = METHODS[name].recorded_steps(SETTINGS, 4)
    assert recorded == (4 if name == "reverse" else 2)


def test_gamma_is_the_learning_rate_unless_given():
    settings = dataclasses.replace(SETTINGS, gamma=None)
    wanted = idarts(curved(), gamma=0.2, neumann_terms=3, products=PRODUCTS)
    assert torch.equal(METHODS["idarts"].hypergradient(curved(), settings), wanted)


def test_defaults_are_the_papers():
    settings = InnerSettings(learning_rate=0.1)
    assert (settings.eta, settings.neumann_terms, settings.products, settings.gamma) == (
        0.1,
        2,
        Products(),
        None,
    )
    assert (settings.momentum, settings.weight_decay, settings.momentum_buffer) == (0, 0, None)
    for call, name in ((amended, "amended"), (t1_t2, "t1-t2")):
        assert torch.equal(METHODS[name].hypergradient(curved(), settings), call(curved()))


def test_settings_compare_and_print_without_their_buffer():
    assert dataclasses.replace(SETTINGS, momentum_buffer=None) == SETTINGS
    assert "buffer" not in repr(SETTINGS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        SETTINGS.eta = 1.0


def test_method_looks_up():
    assert method("amended") is METHODS["amended"]


@pytest.mark.parametrize("name", ["DARTS", "", None])
def test_unknown_method(name):
    with pytest.raises(FastnasError) as raised:
        method(name)
    assert str(raised.value) == (
        f"unknown hypergradient method {name!r}: choose one of first-order, darts, amended, idarts, t1-t2, neumann, "
        "cg, nystroem, exact, reverse, truncated-reverse, idarts-release"
    )


POSITIVE = "must be a finite number > 0"
AT_LEAST_ONE = "must be an integer >= 1"
NOT_NEGATIVE = "must be a finite number >= 0"
LIKE_W = "must be a tensor like w: shape (4,), torch.float64, on cpu"
NAN, INFINITY = float("nan"), float("inf")
STEP_ERRORS = [
    ("learning_rate", -0.1, NOT_NEGATIVE),
    ("learning_rate", NAN, NOT_NEGATIVE),
    ("learning_rate", "0.1", NOT_NEGATIVE),
    ("momentum", -0.1, "must be a number in [0, 1)"),
    ("momentum", 1.0, "must be a number in [0, 1)"),
    ("momentum", NAN, "must be a number in [0, 1)"),
    ("weight_decay", -1e-9, NOT_NEGATIVE),
    ("weight_decay", INFINITY, NOT_NEGATIVE),
]
COUNT_ERRORS = [
    (-1, "must be an integer >= 0"),
    (1.5, "must be an integer >= 0"),
    (True, "must be an integer >= 0"),
]


@pytest.mark.parametrize(
    ("function", "arguments", "where", "name", "value", "message"),
    [
        *((darts, {"learning_rate": 0.1}, "darts", *error) for error in STEP_ERRORS),
        *((inner_steps, {"steps": 1, "learning_rate": 0.1}, "inner_steps", *error) for error in STEP_ERRORS),
        *((inner_steps, {"learning_rate": 0.1}, "inner_steps", "steps", *error) for error in COUNT_ERRORS),
        (inner_steps, {"steps": 1}, "inner_steps", "learning_rate", torch.tensor(0.1), NOT_NEGATIVE),
        (amended, {}, "amended", "eta", -0.1, NOT_NEGATIVE),
        (amended, {}, "amended", "eta", None, NOT_NEGATIVE),
        *((idarts, {}, "idarts", "gamma", value, POSITIVE) for value in (0, 0.0, -0.1, NAN, INFINITY, "0.1")),
        *((idarts, {"gamma": 0.1}, "idarts", "neumann_terms", *error) for error in COUNT_ERRORS),
        *((neumann, {}, "neumann", "gamma", value, POSITIVE) for value in (0, -0.1, NAN, torch.tensor(0.1))),
        (neumann, {"gamma": 0.1}, "neumann", "tolerance", 0, POSITIVE),
        (neumann, {"gamma": 0.1}, "neumann", "damping", -1, NOT_NEGATIVE),
        *((cg, {}, "conjugate_gradients", "steps", value, AT_LEAST_ONE) for value in (0, 1.5)),
        (cg, {}, "conjugate_gradients", "tolerance", -1, NOT_NEGATIVE),
        (cg, {}, "conjugate_gradients", "damping", NAN, NOT_NEGATIVE),
        (nystroem, {}, "nystroem", "rank", 0, AT_LEAST_ONE),
        (nystroem, {}, "nystroem", "damping", 0, POSITIVE),
        *((idarts_release, {}, "idarts-release", "gamma", value, POSITIVE) for value in (0, NAN)),
        (idarts_release, {"gamma": 0.1}, "idarts-release", "neumann_terms", *COUNT_ERRORS[0]),
    ],
)
def test_wrong_arguments(function, arguments, where, name, value, message):
    problem = Counted(curved())
    before = problem.w.clone()
    with pytest.raises(FastnasError) as raised:
        function(problem, **(arguments | {name: value}))
    assert str(raised.value) == f"{where}: {name} {message}, got {value!r}"
    assert problem.calls == []
    assert torch.equal(problem.w, before)


@pytest.mark.parametrize(
    ("rate", "got"),
    [
        (torch.tensor(0.1), "shape (), torch.float32, on cpu"),
        (torch.tensor([0.1]).double(), "shape (1,), torch.float64, on cpu"),
        (torch.tensor(0.1, device="meta").double(), "shape (), torch.float64, on meta"),
    ],
)
@pytest.mark.parametrize(("function", "name"), [(darts, "learning_rate"), (idarts, "gamma")])
def test_wrong_tensors(function, name, rate, got):
    problem = Counted(curved())
    with pytest.raises(FastnasError) as raised:
        function(problem, **{name: rate})
    wanted = "must be a number, or a tensor of shape (), torch.float64, on cpu"
    assert str(raised.value) == f"{function.__name__}: {name} {wanted}; got {got}"
    assert problem.calls == []


@pytest.mark.parametrize(
    ("buffer", "got"),
    [
        (torch.zeros(1).double(), "shape (1,), torch.float64, on cpu"),
        (torch.zeros(4), "shape (4,), torch.float32, on cpu"),
        ([0.0] * 4, "list"),
    ],
)
@pytest.mark.parametrize(("function", "arguments"), [(darts, {}), (inner_steps, {"steps": 1})])
def test_wrong_momentum_buffer(function, arguments, buffer, got):
    problem = Counted(curved())
    with pytest.raises(FastnasError) as raised:
        function(problem, learning_rate=0.1, momentum=0.9, momentum_buffer=buffer, **arguments)
    assert str(raised.value) == f"{function.__name__}: momentum_buffer {LIKE_W}; got {got}"
    assert problem.calls == []


@pytest.mark.parametrize(("function", "arguments"), [(darts, {}), (inner_steps, {"steps": 1})])
def test_weights_that_are_not_flat(function, arguments):
    problem = curved()
    problem.w = problem.w.view(2, 2)
    with pytest.raises(
        FastnasError, match=rf"{function.__name__}: w must be one flat vector, got shape \(2, 2\)"
    ):
        function(problem, learning_rate=0.1, **arguments)


@pytest.mark.parametrize("radius", [0, -1.0, NAN, "0.1", None])
def test_wrong_radius(radius):
    with pytest.raises(FastnasError) as raised:
        Products(radius=radius)
    assert str(raised.value) == f"Products: radius {POSITIVE}, got {radius!r}"


def test_unknown_products():
    for name, known in (
        ("hessian", "difference, exact"),
        ("mixed", "difference, exact"),
        ("scheme", "central, forward"),
    ):
        with pytest.raises(FastnasError) as raised:
            Products(**{name: "finite"})
        assert str(raised.value) == f"Products: {name} must be one of {known}, got 'finite'"


def test_integers_and_numpy_numbers_are_numbers():
    numpy = pytest.importorskip("numpy")
    got = idarts(
        curved(), gamma=numpy.float64(0.25), neumann_terms=numpy.int64(1), products=Products(radius=1)
    )
    assert torch.equal(got, idarts(curved(), gamma=0.25, neumann_terms=1, products=Products(radius=1.0)))
