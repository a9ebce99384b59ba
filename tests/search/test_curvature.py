"""The curvature that a search measures, and the early stop that follows from it."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

import fastnas
from fastnas import FastnasError
from fastnas.bilevel import Products
from fastnas.runs.checkpoint import sealed as seal
from fastnas.search import SearchConfig, curvature, engine, loop
from fastnas.search.__main__ import main
from fastnas.search.curvature import CURVATURE, ends_shown, measured_curvature
from fastnas.spaces import Genotype
from fastnas.supernet import Graphs
from tests.bilevel.networks import dense_hessians, small_network
from tests.bilevel.problems import QuadraticProblem
from tests.checkpoints import newest
from tests.graphs_on_host import HostDevice

VOLATILE = {"seconds", "images_per_second", "peak_memory_bytes"}
LARGEST = "alpha_hessian_lambda_max"


def lasting(rows, without=()):
    return [{name: v for name, v in row.items() if name not in {*VOLATILE, *without}} for row in rows]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def unchecked():
    pass


def test_both_hessians_of_a_quadratic_problem():
    """d2L2/dalpha2 = I there, so one product finds both ends of it."""
    problem = QuadraticProblem(torch.linspace(0.5, 4, 15), outer=4)
    w, alpha = problem.w.clone(), problem.alpha.clone()
    products = []
    row = measured_curvature(problem, Products(), lambda: products.append(1))
    assert tuple(row) == CURVATURE
    assert (row["hessian_lambda_min"], row["hessian_lambda_max"]) == pytest.approx((0.5, 4), abs=1e-8)
    assert (row["alpha_hessian_lambda_min"], row[LARGEST]) == pytest.approx((1, 1), abs=1e-10)
    assert row["hessian_asymmetry"] <= 1e-8
    assert len(products) <= 15 + 4
    assert torch.equal(problem.w, w)
    assert torch.equal(problem.alpha, alpha)


@pytest.mark.parametrize("hessian", ["exact", "difference"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_both_hessians_of_a_smooth_network(hessian, seed, monkeypatch):
    """Against dense ones, after P steps. A difference of radius r is off by O(r^2), and alpha's r is sqrt(6)/15."""
    monkeypatch.setattr(curvature, "STEPS", 40)
    problem = small_network(seed)
    row = measured_curvature(problem, Products(hessian=hessian, radius=1e-3), unchecked)
    dense = dict(
        zip(("hessian", "alpha_hessian"), map(torch.linalg.eigvalsh, dense_hessians(problem)), strict=True)
    )
    for name, share in (("hessian", 1e-5), ("alpha_hessian", 1e-9 if hessian == "exact" else 0.02)):
        accuracy = share * dense[name].abs().max().item()
        assert row[f"{name}_lambda_max"] == pytest.approx(dense[name][-1].item(), abs=accuracy)
        assert row[f"{name}_lambda_min"] == pytest.approx(dense[name][0].item(), abs=accuracy)
        assert row[f"{name}_asymmetry"] <= (1e-12 if hessian == "exact" else share)


def test_a_forward_scheme_is_not_taken():
    """Its error is of the first order in a radius that is long for alpha."""
    problem = small_network()
    a, b = (measured_curvature(problem, Products(scheme=s), unchecked) for s in ("central", "forward"))
    assert a == b


def test_an_interrupt_between_products_leaves_the_problem_as_it_was():
    problem = small_network()
    w, alpha, calls = problem.w.clone(), problem.alpha.clone(), []

    def check():
        calls.append(1)
        if len(calls) == 22:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured_curvature(problem, Products(), check)
    assert torch.equal(problem.w, w)
    assert torch.equal(problem.alpha, alpha)


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
def test_the_search_is_the_same_to_the_bit(tiny, tmp_path, space):
    options = {"space": space, "method": "darts", "epochs": 3, "crop_padding": 1, "cutout": 2}
    without = tiny(**options)
    measured = tiny(**options, spectrum_every=2, out=tmp_path / "measured")
    assert not set(CURVATURE) & set(without.metrics[0])
    assert lasting(without.metrics) == lasting(measured.metrics, CURVATURE)
    files = [newest(result.out) for result in (without, measured)]
    assert same(*map(load_file, files))
    for row in measured.metrics:
        values = [row[name] for name in CURVATURE]
        if row["epoch"] == 2:
            assert all(isinstance(value, float) for value in values)
            assert row["hessian_lambda_min"] < row["hessian_lambda_max"]
            assert row["alpha_hessian_lambda_min"] < row[LARGEST]
        else:
            assert values == [None] * len(CURVATURE)
    rows = [json.loads(line) for line in (measured.out / "metrics.jsonl").read_text().splitlines()]
    assert rows == measured.metrics


def test_exact_products_of_both_executors_give_the_same_spectra(tiny, tmp_path):
    """By tangents and by double backward, in float64, after one epoch."""
    options = {"method": "first-order", "epochs": 1, "spectrum_every": 1, "dtype": "float64", "hvp": "exact"}
    rows = [
        tiny(**options, space="nasbench201", backend=backend, out=tmp_path / backend).metrics[0]
        for backend in ("fused", "reference")
    ]
    for name in CURVATURE:
        if name.endswith("asymmetry"):
            assert max(row[name] for row in rows) <= 1e-12
        else:
            assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-6)


def test_graphs_change_no_bit_of_the_curvature(tiny, tmp_path, monkeypatch):
    options = {"space": "nasbench201", "method": "darts", "spectrum_every": 1, "channels": 4}
    eager = tiny(**options)
    monkeypatch.setattr(engine, "_graphs", lambda config, device: Graphs(HostDevice()))
    replayed = tiny(**options, out=tmp_path / "replayed")
    assert lasting(eager.metrics) == lasting(replayed.metrics)


def test_a_resumed_run_measures_what_the_uninterrupted_one_does(tiny, tmp_path, monkeypatch):
    whole = tiny(method="first-order", epochs=3, spectrum_every=1)
    interrupt_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        tiny(method="first-order", epochs=3, spectrum_every=1, out=tmp_path / "part")
    monkeypatch.undo()
    part = fastnas.search(resume=tmp_path / "part")
    assert lasting(whole.metrics) == lasting(part.metrics)


def test_the_line_of_an_epoch_shows_both_ends(tmp_path, capsys):
    arguments = ["--channels=2", "--layers=1", "--images=64", "--batch-size=8", "--threads=1", "--device=cpu"]
    main(
        [*arguments, "--epochs=2", "--method=first-order", "--spectrum-every=2", f"--out={tmp_path / 'run'}"]
    )
    _, first, second = re.split(r"^epoch ", capsys.readouterr().out, flags=re.MULTILINE)
    assert "Hessian" not in first
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])
    assert "  ".join(ends_shown(row)) in second
    assert ends_shown(row) == [
        f"Hessian of w {row['hessian_lambda_min']:.2g} to {row['hessian_lambda_max']:.2g}",
        f"of alpha {row['alpha_hessian_lambda_min']:.2g} to {row['alpha_hessian_lambda_max']:.2g}",
    ]


# The early stop, with eigenvalues by hand: ones, and threes from epoch 19, so that the mean over 15..19 is 1.4.
STOPPING = {"method": "first-order", "images": 32, "epochs": 20, "spectrum_every": 1, "early_stop": True}


def by_hand(monkeypatch, jump=19):
    def curvature(self, epoch):
        return {**dict.fromkeys(CURVATURE, 0.0), LARGEST: 1.0 if epoch < jump else 3.0}

    monkeypatch.setattr(loop.Search, "_curvature", curvature)


def interrupt_at(monkeypatch, number):
    epoch = loop.Search.epoch

    def interrupted(self, n, *others):
        if n == number:
            raise KeyboardInterrupt
        return epoch(self, n, *others)

    monkeypatch.setattr(loop.Search, "epoch", interrupted)


@pytest.fixture
def alphas_seen(monkeypatch):
    """The alphas after every epoch of the search to come."""
    seen, epoch = {}, loop.Search.epoch

    def recorded(self, n, *others):
        row = epoch(self, n, *others)
        seen[n] = self.alphas()
        return row

    monkeypatch.setattr(loop.Search, "epoch", recorded)
    return seen


def test_a_search_stops_and_goes_back(tiny, monkeypatch, alphas_seen):
    by_hand(monkeypatch)
    # A rate of alpha at which its architecture changes from epoch to epoch.
    result = tiny(**STOPPING, arch_learning_rate=0.3)
    assert (result.stop.epoch, result.stop.at) == (12, 19)
    assert [row["epoch"] for row in result.metrics] == list(range(1, 20))
    assert same(result.alphas, alphas_seen[12])
    assert not same(result.alphas, alphas_seen[19])
    assert str(result.genotype) == result.metrics[11]["genotype"] != result.metrics[18]["genotype"]
    assert Genotype.parse((result.out / "genotype.json").read_text()) == result.genotype
    assert (result.out / "genotypes" / "epoch-019.json").exists()


def test_a_stopped_search_is_over_and_a_resumed_one_stops_alike(tiny, tmp_path, monkeypatch):
    by_hand(monkeypatch)
    options = {**STOPPING, "arch_learning_rate": 0.3}
    whole = tiny(**options)
    for number in (5, 19):
        with monkeypatch.context() as patch:
            interrupt_at(patch, number)
            with pytest.raises(KeyboardInterrupt, match="--resume"):
                tiny(**options, out=tmp_path / f"part{number}")
        part = fastnas.search(resume=tmp_path / f"part{number}")
        assert part.stop == whole.stop
        assert part.genotype == whole.genotype
        assert same(part.alphas, whole.alphas)
        assert lasting(part.metrics) == lasting(whole.metrics)
    # Stopped before it went back: the newest genotype is still that of the last epoch.
    shutil.copy(whole.out / "genotypes" / "epoch-019.json", whole.out / "genotype.json")
    again = fastnas.search(resume=whole.out)
    assert (again.stop, again.genotype, len(again.metrics)) == (whole.stop, whole.genotype, 19)
    assert same(again.alphas, whole.alphas)
    assert Genotype.parse((whole.out / "genotype.json").read_text()) == whole.genotype


def test_a_search_without_a_rise_goes_on_to_its_end(tiny, monkeypatch):
    by_hand(monkeypatch, jump=21)
    result = tiny(**STOPPING)
    assert result.stop is None
    assert len(result.metrics) == 20
    assert str(result.genotype) == result.metrics[-1]["genotype"]


def test_without_the_flag_nothing_stops(tiny, monkeypatch):
    by_hand(monkeypatch)
    result = tiny(**{**STOPPING, "early_stop": False})
    assert result.stop is None
    assert len(result.metrics) == 20


def test_the_command_says_why_it_ended(tmp_path, monkeypatch, capsys):
    by_hand(monkeypatch)
    arguments = ["--channels=2", "--layers=1", "--images=64", "--batch-size=8", "--threads=1", "--device=cpu"]
    flags = ["--epochs=20", "--method=first-order", "--spectrum-every=1", "--early-stop"]
    main([*arguments, *flags, f"--out={tmp_path / 'run'}"])
    sentence = (
        "stopped early after epoch 19: the largest eigenvalue of d2L2/dalpha2 rose from 1 to 1.4 "
        "(means of several epochs); the architecture is that of epoch 12"
    )
    lines = capsys.readouterr().out.splitlines()
    assert sentence in lines
    genotype = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[11])["genotype"]
    assert f"genotype: {genotype}" in lines
    main(["--resume", str(tmp_path / "run")])
    lines = capsys.readouterr().out.splitlines()
    assert sentence in lines
    assert not any(line.startswith("epoch ") for line in lines)


def test_alphas_that_are_gone_or_damaged_are_one_sentence(tiny, monkeypatch):
    by_hand(monkeypatch)
    out = tiny(**STOPPING).out
    file = out / "alphas" / "epoch-012.safetensors"
    file.write_bytes(b"not alphas")
    for _ in range(2):
        with pytest.raises(FastnasError, match=r"the alphas of epoch 12 cannot be read from .*012") as caught:
            fastnas.search(resume=out)
        assert "\n" not in str(caught.value)
        file.unlink(missing_ok=True)


def test_edited_eigenvalues_are_one_sentence(tiny, monkeypatch):
    by_hand(monkeypatch)
    out = tiny(**STOPPING).out
    file = newest(out).with_suffix(".json")
    content = json.loads(file.read_text())
    del content["sha256"]
    content["rows"][0][LARGEST] = "one"
    file.write_text(seal(content))
    with pytest.raises(FastnasError, match="the eigenvalue of epoch 1 is no finite number: 'one'"):
        fastnas.search(resume=out)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"early_stop": True}, "--early-stop needs --spectrum-every N"),
        ({"early_stop": True, "spectrum_every": 0}, "--early-stop needs --spectrum-every N"),
        (
            {"early_stop": True, "spectrum_every": 6, "epochs": 50},
            "with --spectrum-every 6 decides after epoch 60 at the earliest, but --epochs is 50; take more epochs",
        ),
        (
            {"early_stop": True, "spectrum_every": 1},
            "decides after epoch 18 at the earliest, but --epochs is 6;",
        ),
        ({"spectrum_every": -1}, "--spectrum-every must be at least 0, got -1"),
        ({"spectrum_every": 1.5}, "option spectrum_every must be int or None, got 1.5"),
    ],
)
def test_a_mistake_is_one_sentence(options, sentence):
    with pytest.raises(FastnasError, match=sentence) as caught:
        SearchConfig.from_options(options).resolved()
    assert "\n" not in str(caught.value)


def test_the_fewest_epochs_that_can_stop():
    assert SearchConfig.from_options({"early_stop": True, "spectrum_every": 1, "epochs": 18}).resolved()


def test_how_often_is_free_unless_a_stop_depends_on_it():
    def resolved(**options):
        return SearchConfig.from_options({"epochs": 50, **options}).resolved()

    assert resolved().differences(resolved(spectrum_every=3)) == []
    stopping = resolved(spectrum_every=1, early_stop=True)
    assert resolved(spectrum_every=1).differences(stopping) == ["early_stop"]
    assert stopping.differences(resolved(spectrum_every=2, early_stop=True)) == ["spectrum_every"]
