"""Searches in what the found network is trained as: auxiliary head, drop-path, cutout, the evaluation's sizes."""

import pytest
import torch
import torch.nn.functional as F

import fastnas
from fastnas import FastnasError
from fastnas.bilevel import mixed_product
from fastnas.search import SearchConfig
from fastnas.search.engine import Search
from fastnas.search.images import ImageTask
from fastnas.spaces import make_space, with_auxiliary
from fastnas.supernet import SupernetProblem, build_supernet
from tests.interrupted import interrupted_in


def resolved(**options):
    return SearchConfig.from_options(options).resolved().to_options()


@pytest.mark.parametrize(
    ("space", "dataset", "expected"),
    [
        ("s2", "cifar10", {"channels": 36, "layers": 20, "auxiliary": 0.4, "drop_path": 0.2, "cutout": 16}),
        (
            "darts",
            "cifar10",
            {"channels": 36, "layers": 20, "auxiliary": 0.4, "drop_path": 0.2, "cutout": 16},
        ),
        ("darts", "digits", {"channels": 8, "layers": 3, "auxiliary": 0.0, "drop_path": 0.1, "cutout": 0}),
    ],
)
def test_consistency_takes_the_recipe(space, dataset, expected):
    options = {"space": space, "dataset": dataset, "data": "somewhere" if dataset != "digits" else None}
    found = resolved(**options, consistency=True)
    assert {name: found[name] for name in expected} == expected
    assert resolved(**options, consistency=True, auxiliary=0.0, channels=6)["channels"] == 6
    plain = resolved(**options)
    assert (plain["auxiliary"], plain["drop_path"], plain["cutout"]) == (0.0, 0.0, 0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"drop_path": 1.0}, "--drop-path must be less than 1, got 1.0"),
        ({"auxiliary": -1.0}, "--auxiliary must be at least 0, got -1.0"),
    ],
)
def test_a_wrong_value_is_one_sentence(options, sentence):
    with pytest.raises(FastnasError, match=sentence):
        resolved(**options)


@pytest.fixture(params=["fused", "reference"])
def net(request):
    """A DARTS supernet with auxiliary head and drop-path, in float64."""
    torch.manual_seed(0)
    space = with_auxiliary(make_space("darts", channels=4, layers=3, image_channels=1))
    found = build_supernet(space, backend=request.param, dtype=torch.float64)
    found.drop_path = torch.tensor(0.5)
    return found


def batches():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 6, 1, 32, 32, dtype=torch.float64, generator=generator)
    labels = torch.randint(10, (2, 6), generator=generator)
    return list(zip(images, labels, strict=True))


def test_the_auxiliary_loss_is_part_of_the_training_loss_alone(net):
    train, val = batches()
    net.train()
    with net.frozen_statistics():
        torch.manual_seed(5)
        logits, auxiliary = net.heads(train[0])
        loss = F.cross_entropy(logits, train[1]) + net.auxiliary_weight * F.cross_entropy(auxiliary, train[1])
        expected = torch.autograd.grad(loss, net.weights.leaves)
        torch.manual_seed(5)
        value, _ = net.heads(val[0])
        without = torch.autograd.grad(
            F.cross_entropy(value, val[1]), net.weights.leaves, materialize_grads=True
        )
    problem = SupernetProblem(net, train, val)
    torch.manual_seed(5)
    torch.testing.assert_close(problem.train_grad_w(), torch.cat([g.reshape(-1) for g in expected]))
    torch.manual_seed(5)
    torch.testing.assert_close(problem.val_grads()[0], torch.cat([g.reshape(-1) for g in without]))
    begin, end = net.weights.span("auxiliary.")
    assert problem.train_grad_w()[begin:end].abs().max() > 0
    assert not problem.val_grads()[0][begin:end].any()


def test_both_sides_of_a_difference_drop_the_same_paths(net):
    """Between two networks that dropped others, the difference would be noise divided by the radius."""
    problem = SupernetProblem(net, *batches())
    before = torch.get_rng_state()
    u = torch.randn(len(problem.w), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    exact = problem.train_mixed_product(u)
    torch.testing.assert_close(mixed_product(problem, u, radius=1e-7), exact, rtol=1e-3, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), before)
    net.drop_path.zero_()
    assert not torch.allclose(problem.train_mixed_product(u), exact, rtol=0.1)


def test_a_search_with_drop_path_resumes_to_the_bit(tiny, tmp_path, monkeypatch):
    options = {"space": "s2", "layers": 3, "drop_path": 0.6, "cutout": 2, "method": "darts"}
    whole = tiny(out=tmp_path / "whole", **options)
    plain = tiny(out=tmp_path / "plain", **options | {"drop_path": 0.0})
    shares = []

    with interrupted_in(Search, 2, r"--resume .*part"):
        tiny(out=tmp_path / "part", **options)

    def watched(self, net, number):
        prepare(self, net, number)
        shares.append(net.drop_path.item())

    prepare = ImageTask.prepare
    monkeypatch.setattr(ImageTask, "prepare", watched)
    part = fastnas.search(resume=tmp_path / "part")
    assert shares == pytest.approx([0.3])  # of the second of two epochs
    for name, alpha in whole.alphas.items():
        assert torch.equal(alpha, part.alphas[name])
        assert not torch.equal(alpha, plain.alphas[name])
