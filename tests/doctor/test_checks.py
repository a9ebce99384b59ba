"""The checks pass where the operators are right, and name those that are not."""

from contextlib import nullcontext

import pytest
import torch

from fastnas import ops
from fastnas.doctor.checks import (
    Case,
    DeviceLostError,
    Measured,
    MissingKernelError,
    Operator,
    by_cases,
    check,
)
from fastnas.doctor.operators import OPERATORS, Random, _distinct
from tests.doctor.conftest import FACTOR, SABOTAGES

CPU = torch.device("cpu")


def findings(operators=OPERATORS, device=CPU, small=True, cuda_build=False):
    return list(check(operators, device, small=small, cuda_build=cuda_build))


def operator(name):
    return next(one for one in OPERATORS if one.name == name)


def test_every_exported_operator_is_checked():
    assert {one.name for one in OPERATORS} == {*ops.__all__, "cell"}


@pytest.mark.parametrize("name", [one.name for one in OPERATORS])
def test_all_are_right_here(name):
    state = torch.get_rng_state()
    for finding in findings([operator(name)], small=name == "cell"):
        assert (finding.status, finding.reason) == ("ok", ""), finding
        assert finding.worst.error <= finding.worst.tolerance
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_deterministic_debug_mode() == 0


@pytest.mark.parametrize("name", SABOTAGES)
def test_an_error_of_a_thousandth_is_seen(sabotage, name):
    wrong = sabotage(name)
    # bfloat16 is no more exact than that.
    found = {one.dtype: one for one in findings([operator(wrong)]) if one.dtype != "bfloat16"}
    assert {one.status for one in found.values()} == {"wrong"}
    assert all(one.worst.share > 1 for one in found.values())


def test_what_is_not_written_is_seen(sabotage):
    sabotage.replace(ops, "difference_", lambda real, ahead, *rest: torch.full_like(ahead, torch.nan))
    sabotage.replace(ops, "perturb_", lambda real, w, *rest: w)
    assert {one.status for one in findings([operator("perturb_")])} == {"wrong"}

    def forgets(real, weights, branches):
        return torch.empty_like(branches[0])

    sabotage.replace(torch.ops.fastnas, "mixed_sum", forgets)
    assert {one.status for one in findings([operator("mixed_sum")])} == {"wrong"}


def test_what_does_not_repeat_is_seen(sabotage):
    calls = []

    def drifts(real, vector):
        calls.append(vector)
        return real(vector) * (1 + 2.0**-52 * (len(calls) % 2))

    sabotage.replace(ops, "vector_norm", drifts)
    first, *_ = findings([operator("vector_norm")])
    assert (first.status, first.worst.result) == ("wrong", "norm, a second time")


@pytest.fixture
def no_gpu_needed(monkeypatch):
    """A check that is said to be on a GPU raises before it gets there."""
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: nullcontext())


def raising(*_):
    raise ValueError("mixed_sum: no kernel\nand a second line")


@pytest.mark.parametrize(
    ("device", "cuda_build", "status"), [("cpu", False, "failed"), ("cuda", False, "missing")]
)
def test_what_raises_is_said(device, cuda_build, status, no_gpu_needed):
    broken = Operator("broken", {"cpu": (torch.float32,), "cuda": (torch.float32,)}, raising)
    (found,) = findings([broken], torch.device(device), cuda_build=cuda_build)
    assert (found.status, found.worst, found.reason) == (status, None, "mixed_sum: no kernel")
    assert found.bad == (status == "failed")


def test_what_is_missing_on_purpose_is_no_fault(no_gpu_needed):
    def absent(*_):
        raise MissingKernelError("on cuda cells run as in the reference")

    entry = Operator("cell", {"cuda": (torch.float32,)}, absent)
    (found,) = findings([entry], torch.device("cuda"), cuda_build=True)
    assert (found.status, found.bad) == ("missing", False)


def test_a_lost_device_ends_the_checks(monkeypatch, no_gpu_needed):
    broken = Operator("broken", {"cuda": (torch.float32,)}, raising)
    monkeypatch.setattr("fastnas.doctor.checks._device_lives", lambda device: False)
    found = check([broken, broken], torch.device("cuda"), small=True, cuda_build=True)
    assert next(found).status == "failed"
    with pytest.raises(DeviceLostError, match=r"broken \(float32\) left cuda unusable"):
        next(found)


@pytest.mark.parametrize(
    ("error", "tolerance", "share"),
    [(1.0, 2.0, 0.5), (0.0, 0.0, 0.0), (1.0, 0.0, float("inf")), (float("nan"), 1.0, float("inf"))],
)
def test_share_of_the_tolerance(error, tolerance, share):
    assert Measured("x", error, tolerance).share == share


def test_another_operator_is_one_entry():
    """In bfloat16 too, where numbers stay float32 and plain PyTorch has everything in bfloat16."""
    seen = []

    def compute(reference, images, numbers):
        seen.append((reference, images[0].dtype, numbers[0].dtype))
        return {"product": images[0] * numbers[0] * (1 if reference else FACTOR)}

    def cases(small):
        return [Case([torch.ones(3).double()], [torch.full((3,), 1 / 3).double()], compute)]

    entry = Operator("product", {"cpu": (torch.float32, torch.bfloat16)}, by_cases(cases))
    assert [one.status for one in findings([entry])] == ["wrong", "ok"]
    half, single, double = torch.bfloat16, torch.float32, torch.float64
    assert seen[6:9] == [(False, half, single)] * 2 + [(True, half, half)]
    assert seen[9:] == [(True, double, double)] * 3


@pytest.mark.parametrize("factor", [1, FACTOR])
def test_what_plain_pytorch_leaves_unwritten_is_no_measure(factor):
    def compute(reference, images, numbers):
        out = images[0] / 3
        if not reference:
            return {"third": out * factor}
        if out.dtype == torch.float32:
            out[1] = torch.nan
        return {"third": out}

    def cases(small):
        return [Case([torch.ones(3).double()], [], compute)]

    (found,) = findings([Operator("third", {"cpu": (torch.float32,)}, by_cases(cases))])
    assert found.status == ("ok" if factor == 1 else "wrong")


def test_windows_have_one_maximum():
    x = _distinct(Random(), (2, 3, 7, 8))
    windows = x.unfold(2, 3, 1).unfold(3, 3, 1).reshape(-1, 9)
    assert all(len(row.unique()) == 9 for row in windows)
    assert torch.equal(x.bfloat16().double(), x)


def in_float32(function):
    """As the CUDA kernels compute: bfloat16 images stored, float32 inside, float32 numbers."""

    def call(*arguments, **options):
        def wider(value):
            if isinstance(value, list | tuple):
                return type(value)(wider(one) for one in value)
            half = isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
            return value.float() if half else value

        out, statistics = function(*map(wider, arguments), **options)
        return [one.bfloat16() for one in out] if isinstance(out, list) else out.bfloat16(), statistics

    return call


@pytest.mark.parametrize("name", ["normalised_mixed_sum", "separable_stage", "shared_pooling"])
@pytest.mark.parametrize("off", [False, True])
def test_bfloat16_images_as_kernels_compute_with_them(name, off, monkeypatch):
    good = in_float32(getattr(ops, name))

    def wrong(*arguments, **options):
        out, statistics = good(*arguments, **options)
        return [one * 1.05 for one in out] if isinstance(out, list) else out * 1.05, statistics

    monkeypatch.setattr(ops, name, wrong if off else good)
    entry = Operator(name, {"cpu": (torch.bfloat16,)}, operator(name).measure)
    (found,) = findings([entry], small=False)
    assert (found.status, found.reason) == ("wrong" if off else "ok", ""), found


def test_a_cell_with_bfloat16_activations():
    """Under autocast; on a CPU cells bring what they get to float32."""
    entry = Operator("cell", {"cpu": (torch.bfloat16,)}, operator("cell").measure)
    (found,) = findings([entry])
    assert (found.status, found.reason) == ("ok", "")
    assert found.worst.error > 1e-4  # something was in bfloat16
