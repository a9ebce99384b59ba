"""Operators that are wrong on purpose."""

from types import SimpleNamespace

import pytest
import torch

from fastnas import ops

FACTOR = 1.001


def _scaled(result):
    """All numbers in what an op returns, off by a thousandth."""
    if isinstance(result, torch.Tensor):
        return result * FACTOR
    return type(result)(_scaled(one) for one in result)


def _after_scaling(argument):
    """An op that writes into an argument, which is then off by a thousandth."""

    def change(real, *arguments, **options):
        result = real(*arguments, **options)
        written = arguments[argument]
        for tensor in [written] if isinstance(written, torch.Tensor) else written:
            tensor.detach().mul_(FACTOR)
        return result

    return change


def _returned(real, *arguments, **options):
    return _scaled(real(*arguments, **options))


NATIVE = torch.ops.fastnas
# where a name is looked up, that name, how it goes wrong, and the operator that is to be named
SABOTAGES = {
    "mixed_sum": (NATIVE, "mixed_sum", _returned, "mixed_sum"),
    "mixed_sum, backward": (NATIVE, "mixed_sum_backward", _returned, "mixed_sum"),
    "highway_sum": (NATIVE, "highway_sum", _returned, "highway_sum"),
    "highway_sum, backward": (NATIVE, "highway_sum_backward", _returned, "highway_sum"),
    "normalised_mixed_sum": (NATIVE, "normalised_mixed_sum", _after_scaling(6), "normalised_mixed_sum"),
    "normalised_mixed_sum, backward": (
        NATIVE,
        "normalised_mixed_sum_backward",
        _after_scaling(8),
        "normalised_mixed_sum",
    ),
    "separable_stage": (NATIVE, "separable_stage", _returned, "separable_stage"),
    "separable_stage, backward": (NATIVE, "separable_stage_backward", _after_scaling(10), "separable_stage"),
    "separable_stage, states": (NATIVE, "separable_stage_backward", _after_scaling(11), "separable_stage"),
    "shared_pooling": (NATIVE, "shared_pooling", _returned, "shared_pooling"),
    "shared_pooling, backward": (NATIVE, "shared_pooling_backward", _after_scaling(9), "shared_pooling"),
    "cell": (NATIVE, "cell", _returned, "cell"),
    "cell, backward": (NATIVE, "cell_backward", _returned, "cell"),
    "vector_norm": (ops, "vector_norm", _returned, "vector_norm"),
    "perturb_": (ops, "perturb_", _after_scaling(0), "perturb_"),
    "difference_": (ops, "difference_", _after_scaling(0), "difference_"),
    "sgd_step_": (ops, "sgd_step_", _after_scaling(0), "sgd_step_"),
    "sgd_step_, its buffer": (ops, "sgd_step_", _after_scaling(2), "sgd_step_"),
    "adam_step_": (ops, "adam_step_", _after_scaling(0), "adam_step_"),
    "adam_step_, its squares": (ops, "adam_step_", _after_scaling(3), "adam_step_"),
    "neumann_step_": (ops, "neumann_step_", _returned, "neumann_step_"),
    "neumann_step_, its series": (ops, "neumann_step_", _after_scaling(1), "neumann_step_"),
    "virtual_step_": (ops, "virtual_step_", _after_scaling(0), "virtual_step_"),
}


@pytest.fixture
def sabotage(monkeypatch):
    """``sabotage(name)`` makes an operator wrong; ``sabotage.replace(module, name, change)`` in a way of one's own."""

    def replace(module, name, change):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *arguments, **options: change(real, *arguments, **options))

    def apply(name):
        module, attribute, change, operator = SABOTAGES[name]
        replace(module, attribute, change)
        return operator

    apply.replace = replace
    return apply


@pytest.fixture(autouse=True)
def trusting():
    """No test leaves a distrusted operator behind."""
    from fastnas.ops._distrust import DISTRUSTED

    DISTRUSTED.clear()
    yield SimpleNamespace(distrusted=DISTRUSTED)
    DISTRUSTED.clear()
