import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas.errors import FastnasError
from fastnas.ops import highway_sum
from fastnas.ops.highway_sum import _highway_sum_ref
from tests.ops.accuracy import assert_agrees
from tests.ops.settings import runs_with_threads

OPS = torch.ops.fastnas


def make(sources, rows, units, dtype=torch.float64, scale=3.0):
    """``(mixing, states, raw, grad)`` of normal random numbers; raw ones reach where the activations are flat."""
    generator = torch.Generator().manual_seed(sources)

    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    numbers = (
        normal(sources, 4),
        normal(sources, rows, units),
        scale * normal(sources, rows, 2 * units),
        normal(rows, units),
    )
    return [tensor.to(dtype) for tensor in numbers]


def value_and_grads(function, mixing, states, raw, grad):
    leaves = [tensor.detach().requires_grad_() for tensor in (mixing, states, raw)]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def spreads(mixing, states, raw, grad):
    """The root of the sum of the squares of what each result adds up, roundings of a term being of its parts' size."""
    gate, value = raw.chunk(2, -1)
    gate = gate.sigmoid()
    activated = torch.stack([value.tanh(), value.relu(), value.sigmoid(), value])
    terms = mixing.T[:, :, None, None] * (states.abs() + gate * (activated.abs() + states.abs()))
    along_units = grad * (states.abs() + gate * (activated.abs() + states.abs()))
    weight = mixing.abs().sum(1)[:, None, None] * grad.abs()
    flat = weight * gate * (activated.abs().sum(0) + states.abs())
    return [
        terms.square().sum((0, 1)).sqrt(),
        along_units.square().sum((2, 3)).sqrt().T,
        weight.expand(states.shape),
        torch.cat((flat, weight * gate), -1),
    ]


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (2, 9, 16), (8, 17, 33), (5, 3, 151)])
def test_accuracy(poisoned, shape, dtype):
    check(highway_sum, *make(*shape, dtype))


def check(function, *given_numbers):
    """``function`` is as accurate as plain PyTorch."""
    wide = [tensor.double() for tensor in given_numbers]
    results = zip(
        value_and_grads(function, *given_numbers),
        value_and_grads(_highway_sum_ref, *given_numbers),
        value_and_grads(_highway_sum_ref, *wide),
        spreads(*wide),
        strict=True,
    )
    for ours, plain, exact, spread in results:
        assert_agrees(ours, plain, exact, spread)


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_activation_has_small_relative_errors_everywhere(dtype):
    """Where it is steep, next to 0 and where it is flat; the gate is open, the source 0."""
    x = torch.cat([10.0 ** torch.linspace(-12, 1.9, 300, dtype=torch.float64), torch.zeros(1)]).to(dtype)
    x = torch.cat([x, -x]).double()
    raw = torch.cat([torch.full_like(x, 80.0), x])[None, None].to(dtype)
    expected = (x.tanh(), x.relu(), x.sigmoid(), x)
    for k, exact in enumerate(expected):
        mixing = torch.zeros(1, 4, dtype=dtype)
        mixing[0, k] = 1
        out = highway_sum(mixing, torch.zeros(1, 1, len(x), dtype=dtype), raw)[0].double()
        torch.testing.assert_close(out, exact, rtol=8 * torch.finfo(dtype).eps, atol=1e-37)


def test_by_hand():
    """s = 2, c = 1/2, h = ln 3: tanh h = 4/5, sigmoid h = 3/4."""
    h = torch.tensor(3.0, dtype=torch.float64).log()
    mixing = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    raw = torch.stack([torch.zeros_like(h), h]).view(1, 1, 2)
    mixed = 0.1 * 0.8 + 0.2 * h + 0.3 * 0.75 + 0.4 * h
    out, d_mixing, d_states, d_raw = value_and_grads(
        highway_sum,
        mixing,
        torch.full((1, 1, 1), 2.0, dtype=torch.float64),
        raw,
        torch.ones(1, 1, dtype=torch.float64),
    )
    close = {"rtol": 1e-14, "atol": 1e-15}
    torch.testing.assert_close(out[0, 0], 1 + mixed / 2, **close)
    updates = [1 + f / 2 for f in (0.8, h.item(), 0.75, h.item())]
    torch.testing.assert_close(d_mixing[0], torch.tensor(updates, dtype=torch.float64), **close)
    torch.testing.assert_close(d_states.item(), 0.5, **close)
    slope = 0.1 * (1 - 0.64) + 0.2 + 0.3 * 0.75 * 0.25 + 0.4
    wanted = torch.stack([(mixed - 2) / 4, torch.tensor(slope / 2, dtype=torch.float64)])
    torch.testing.assert_close(d_raw[0, 0], wanted, **close)


def test_gradcheck_and_opcheck():
    numbers = make(3, 2, 5)
    leaves = [tensor.requires_grad_() for tensor in numbers[:3]]
    assert torch.autograd.gradcheck(highway_sum, leaves)
    plain = [tensor.detach() for tensor in numbers]
    torch.library.opcheck(OPS.highway_sum.default, plain[:3])
    torch.library.opcheck(OPS.highway_sum_backward.default, [plain[3], *plain[:3]])


def test_any_layout_and_number_of_threads():
    mixing, states, raw, grad = make(4, 21, 10, torch.float32)
    strided = (mixing.T.contiguous().T, states.transpose(1, 2).contiguous().transpose(1, 2), raw[:, ::1])
    for one, other in zip(
        value_and_grads(highway_sum, mixing, states, raw, grad),
        value_and_grads(highway_sum, *strided, grad.T.contiguous().T),
        strict=True,
    ):
        assert torch.equal(one, other)
    runs = runs_with_threads(lambda: value_and_grads(highway_sum, mixing, states, raw, grad))
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 19))
def test_any_size(sources, rows, units):
    numbers = make(sources, rows, units)
    for ours, plain in zip(
        value_and_grads(highway_sum, *numbers), value_and_grads(_highway_sum_ref, *numbers), strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-12)


def test_what_is_kept_for_backward():
    mixing, states, raw, _ = make(3, 4, 5, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        highway_sum(mixing, states.requires_grad_(), raw)
    assert sum(kept) == mixing.nbytes + states.nbytes + raw.nbytes


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mixing": torch.ones(2, 4)}, "highway_sum: mixing must have shape (S, 4), S = 3, got (2, 4)"),
        ({"mixing": torch.ones(3, 4).double()}, "mixing must be float32 on cpu as states are, got float64"),
        (
            {"raw": torch.ones(3, 2, 5)},
            "raw must have shape (S, B, 2 units) for states (3, 2, 5), got (3, 2, 5)",
        ),
        ({"states": torch.ones(2, 5)}, "states must have shape (S, B, units) with S >= 1, got (2, 5)"),
        ({"states": torch.ones(3, 2, 5).half()}, "states must be float32 or float64, got float16"),
        ({"raw": None}, "raw must be a tensor, got NoneType"),
    ],
)
def test_mistakes(change, sentence):
    good = {"mixing": torch.ones(3, 4), "states": torch.ones(3, 2, 5), "raw": torch.ones(3, 2, 10)}
    with pytest.raises(FastnasError) as error:
        highway_sum(**{**good, **change})
    assert sentence in str(error.value)
