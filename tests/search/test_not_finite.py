"""A search that meets a NaN or an infinity ends with what and where it was, its state as before, and goes on."""

import contextlib

import pytest
import torch

import fastnas
from fastnas.bilevel import NotFiniteError
from fastnas.search import SearchStep
from fastnas.search.__main__ import main
from fastnas.search.task import make_task
from fastnas.supernet import Graphs
from tests.corpora import write_corpus
from tests.graphs_on_host import HostDevice
from tests.search import test_text
from tests.search.conftest import TINY
from tests.search.test_graphs import batches, equal, run, search_step, state

VOLATILE = ("second", "memory")


def rows(result):
    return [{k: v for k, v in row.items() if not any(v in k for v in VOLATILE)} for row in result.metrics]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """``whole(kind)``: a tiny search by that kind of executor, undisturbed, and the steps of its epochs."""
    found = {}

    def run(kind):
        if kind not in found:
            folder = tmp_path_factory.mktemp(kind)
            options = {**TINY, "backend": kind}
            if kind == "text":
                options = {**test_text.TINY, "data": write_corpus(folder / "text"), "inner_steps": 2}
            result = fastnas.search(**{**options, "out": folder / "run"})
            task = make_task(result.config, torch.device("cpu"))
            found[kind] = result, len(task.train) // 2
        return found[kind]

    return run


@contextlib.contextmanager
def planted(monkeypatch, at, plant):
    """Within it ``plant(step, train, val)`` is called before step ``at``, and may give other batches."""
    inner, count = SearchStep.__call__, [0]

    def step(self, train, val, rate):
        count[0] += 1
        if count[0] == at:
            train, val = plant(self, train, val) or (train, val)
        return inner(self, train, val, rate)

    with monkeypatch.context() as patch:
        patch.setattr(SearchStep, "__call__", step)
        yield


def of_image(step, train, val):
    images = train[1][0].clone()
    images[3, 0, 2, 2] = torch.nan
    return [train[0], (images, train[1][1])], val


def of_primitive(step, train, val):
    """The output of one, in the forward pass."""
    edge = next(m for name, m in step.net.named_modules() if name.endswith("edges.1.sep_conv_3x3"))
    edge.register_forward_hook(lambda module, inputs, output: output * torch.inf)


def of_weights(step, train, val):
    step.net.weights.flat[-1] = torch.inf


def of_alpha(step, train, val):
    step.net.alphas.flat[2] = torch.nan


def of_state(step, train, val):
    """Running statistics, or the hidden state of a text."""
    for tensor in step.states.values() if step.states else [step.net.running.flat]:
        tensor.view(-1)[1] = torch.nan


def of_momentum(step, train, val):
    buffer = step.weight_optimiser.momentum_buffer
    if buffer is None:
        return of_weights(step, train, val)
    buffer[0] = torch.inf
    return None


PLACES = {
    of_image: r"NaN or infinity in the loss, and before the step in the images, so the step was not made",
    of_primitive: r"NaN or infinity in the loss, first in the output of aten::mul in "
    r"stages\.1\.edges\.1\.sep_conv_3x3 \(edge 1 -> 2\) ",
    of_weights: r"NaN or infinity in the (loss|gradient), and before the step in the weights ",
    of_alpha: r"NaN or infinity in (the loss, and before the step in )?the architecture parameters ",
    of_state: r"NaN or infinity in the (statistics|loss), and before the step in the (statistic|hidden state)",
    of_momentum: r"NaN or infinity in the (weights|loss)",
}


@pytest.mark.parametrize(
    ("kind", "plant"),
    [
        ("fused", of_image),
        ("fused", of_alpha),
        ("fused", of_state),
        ("fused", of_momentum),
        ("reference", of_primitive),
        ("text", of_weights),
        ("text", of_state),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_what_is_planted_is_named_and_the_checkpoint_before_it_goes_on(
    whole, kind, plant, tmp_path, monkeypatch
):
    result, steps = whole(kind)
    out = tmp_path / "run"
    options = {**result.config.to_options(), "out": out}
    with (
        planted(monkeypatch, steps + 1, plant),
        pytest.raises(NotFiniteError, match=f"^epoch 2, step 1: {PLACES[plant]}") as caught,
    ):
        fastnas.search(**options)
    (newest,) = (out / "checkpoints").glob("*.safetensors")
    assert f"; {newest} is from before: start again with a lower --learning-rate" in str(caught.value)
    assert str(caught.value).endswith(
        f"go on from there by: python -m fastnas.search --resume {out} --detect-anomaly"
    )
    assert rows(fastnas.search(resume=out)) == rows(result)


@pytest.mark.parametrize("kind", ["fused", "text"])
def test_detecting_anomalies_changes_no_number(whole, kind, tmp_path):
    result, _ = whole(kind)
    options = {**result.config.to_options(), "out": tmp_path / "run", "epochs": 1}
    options["detect_anomaly"] = True
    again = fastnas.search(**options)
    plain = fastnas.search(**{**options, "detect_anomaly": False, "out": tmp_path / "plain"})
    assert rows(again) == rows(plain)
    assert not plain.config.differences(again.config)


def test_an_anomaly_is_detected_at_once(whole, tmp_path, monkeypatch):
    result, _ = whole("fused")
    options = {**result.config.to_options(), "out": tmp_path / "run", "detect_anomaly": True}
    wanted = "^epoch 1, step 2: NaN or infinity before the step in the images, so the step was not made; there is no "
    with planted(monkeypatch, 2, of_image), pytest.raises(NotFiniteError, match=wanted):
        fastnas.search(**options)


def test_the_command_ends_with_one_sentence(tmp_path, capsys):
    arguments = (
        "--channels 2 --layers 1 --images 64 --batch-size 8 --threads 1 --device cpu --learning-rate 1e30"
    )
    with pytest.raises(SystemExit) as stop:
        main([*arguments.split(), "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert line.startswith(
        "error: epoch 1, step 1: NaN or infinity in the loss, first in the output of aten::conv"
    )


def test_a_replayed_step_is_taken_back_too():
    """In graphs, where no Python looks at it: the state is that from before, and the step that follows is made."""
    torch.manual_seed(0)
    step = search_step(method="t1-t2", graphs=Graphs(HostDevice()))
    run(step)
    before, graphs = [t.clone() for t in state(step)], len(step.graphs)
    val, *train = batches(9)
    train[0][0][0, 0, 0, 0] = torch.nan
    report = step(train, val, 0.1)
    later = step(list(reversed(batches(10)[1:])), val, 0.1)
    assert equal(before, state(step))
    with pytest.raises(
        NotFiniteError, match=r"^NaN or infinity in the (loss|statistics), and before .* in the images, so"
    ):
        report.watch.sentences()
    assert len(step.graphs) == graphs > 0
    assert later.losses.isfinite().all()
    run(step, 3, 4)
    assert not equal(before[:1], state(step)[:1])
