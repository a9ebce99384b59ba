"""Ctrl-C: a search ends after the step in progress, whatever Python is doing when it is pressed."""

import signal
import threading
from functools import partial

import pytest

import fastnas
from fastnas.errors import Terminated
from fastnas.runs.checkpoint import Checkpoints
from fastnas.search import images, loop
from fastnas.search.step import SearchStep
from fastnas.supernet import Supernet
from tests.checkpoints import newest, sealed
from tests.runs.lives import same

STEPS = 4  # 2 epochs of 4 batches, 2 a step


def press():
    signal.raise_signal(signal.SIGINT)


def terminate():
    signal.raise_signal(signal.SIGTERM)


class DropsExceptions:
    """Python ignores what a finalizer raises; so was Ctrl-C, if it came there."""

    def __del__(self):
        press()


def press_in_a_finalizer():
    DropsExceptions()


PRESSES = [press, press_in_a_finalizer, terminate]


@pytest.fixture(autouse=True)
def handler():
    """Python's own, before every test and, whatever the test did, after it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    left = signal.signal(signal.SIGINT, before)
    assert left is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.fixture
def steps(monkeypatch):
    """Counts the steps begun and ended; ``during`` is called within each, with its number."""

    class Steps:
        begun = ended = 0

        def during(self, number):
            pass

    steps, step = Steps(), SearchStep.__call__

    def counted(self, *arguments):
        steps.begun += 1
        steps.during(steps.begun)
        report = step(self, *arguments)
        steps.ended += 1
        return report

    monkeypatch.setattr(SearchStep, "__call__", counted)
    return steps


@pytest.mark.parametrize("how", PRESSES)
@pytest.mark.parametrize("number", [1, 2, STEPS])
def test_the_step_in_progress_is_the_last_one(tiny, tmp_path, steps, how, number):
    steps.during = lambda begun: how() if begun == number else None
    with pytest.raises(KeyboardInterrupt, match=r"to go on: python -m fastnas.search --resume .*run"):
        tiny()
    assert (steps.begun, steps.ended) == (number, number)
    assert sealed(tmp_path / "run")[-1].stem == f"{(number - 1) // 2:05d}-{(number - 1) % 2 + 1:07d}"
    steps.during = lambda begun: None
    assert len(fastnas.search(resume=tmp_path / "run").metrics) == 2


def test_a_second_press_breaks_a_step_off(tiny, steps):
    def twice(_):
        press()
        press()

    steps.during = twice
    with pytest.raises(KeyboardInterrupt, match="to go on"):
        tiny()
    assert (steps.begun, steps.ended) == (1, 0)


def test_a_second_sigterm_breaks_nothing_off(tiny, steps, tmp_path):
    def twice(_):
        terminate()
        terminate()

    steps.during = twice
    with pytest.raises(Terminated, match="to go on"):
        tiny()
    assert (steps.begun, steps.ended) == (1, 1)
    assert newest(tmp_path / "run").stem == "00000-0000001"


MOVING = {"epochs": 2, "crop_padding": 1, "flip": True, "cutout": 2, "checkpoint_seconds": 0.0}
RESUMED = [
    {"method": "first-order", "drop_path": 0.3, "layers": 2, "image_size": None},
    {"method": "darts", "space": "nasbench201"},
    {"method": "idarts", "space": "nasbench1shot1-1"},
    {"method": "reverse", "hvp": "exact", "mixed_product": "exact"},
    {"method": "idarts-release", "audit_every": 1, "spectrum_every": 2},
    {
        "method": "idarts",
        "inner_steps": 3,
        "train_portion": 0.75,
        "audit_every": 1,
    },  # alpha's split is seen twice
]


@pytest.mark.parametrize("options", RESUMED)
def test_a_run_that_ends_at_any_step_goes_on_to_the_same(tiny, tmp_path, steps, options):
    """Behind every step of the search, and in its evaluations: SIGTERM, and once more after each resumption."""
    whole = tiny(**MOVING, **options, out=tmp_path / "whole")
    count, steps.begun = steps.begun, 0
    steps.during = lambda _: terminate()
    out, stops = tmp_path / "run", 0
    run = partial(tiny, **MOVING, **options)
    while True:
        try:
            found = run()
            break
        except Terminated:
            stops += 1
            run = partial(fastnas.search, resume=out)
    assert stops == count
    assert same(out, tmp_path / "whole")
    assert found.genotype == whole.genotype


def test_a_run_that_ends_in_an_evaluation_goes_on_to_the_same(tiny, tmp_path, monkeypatch):
    options = {"epochs": 2, "audit_every": 1, "spectrum_every": 1, "method": "darts"}
    tiny(**options, out=tmp_path / "whole")
    evaluate, out = images.ImageTask.evaluate, tmp_path / "run"
    # The first run stops as it evaluates its first epoch; the second does that again and stops at its second.
    for number, run in ((1, tiny), (2, partial(fastnas.search, resume=out))):
        left = iter(range(number - 1, -1, -1))

        def stopped(self, net, check, left=left):
            if not next(left):
                terminate()
            return evaluate(self, net, check)

        with monkeypatch.context() as patch:
            patch.setattr(images.ImageTask, "evaluate", stopped)
            with pytest.raises(Terminated):
                run(**(options if number == 1 else {}))
        assert newest(out).stem == f"{number - 1:05d}-0000002"
    fastnas.search(resume=out)
    assert same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("how", PRESSES)
def test_an_evaluation_ends_after_its_batch(tiny, tmp_path, monkeypatch, how):
    forward, evaluated = Supernet.forward, []

    def pressed(self, images):
        if not self.training:
            how()
            evaluated.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Supernet, "forward", pressed)
    with pytest.raises(KeyboardInterrupt, match="to go on"):
        tiny()
    assert evaluated == [8]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert newest(tmp_path / "run").stem == "00000-0000002"  # behind the last step


def test_a_checkpoint_in_progress_is_written(tiny, tmp_path, monkeypatch):
    write = Checkpoints.write

    def pressed(*arguments):
        press()
        write(*arguments)

    for epochs in (2, 1):  # after the last epoch, too: the caller may have more searches to run
        out = tmp_path / str(epochs)
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "write", pressed)
            with pytest.raises(KeyboardInterrupt, match="to go on"):
                tiny(epochs=epochs, out=out)
        assert newest(out).exists()
        assert len((out / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", PRESSES)
def test_while_the_data_is_read_nothing_is_made(tiny, tmp_path, steps, monkeypatch, how):
    load, loaded = images.load_dataset, []

    def pressed(*arguments, **options):
        how()
        loaded.append(load(*arguments, **options))
        return loaded[-1]

    monkeypatch.setattr(images, "load_dataset", pressed)
    with pytest.raises(KeyboardInterrupt) as stop:
        tiny()
    assert str(stop.value) == ""
    assert len(loaded) == (1 if how is press_in_a_finalizer else 0)  # at once, where Python raises it
    assert steps.begun == 0
    assert not (tmp_path / "run").exists()


def test_while_the_folder_is_made_it_is_made_whole(tiny, tmp_path, steps, monkeypatch):
    start = loop.RunFolder.start

    def pressed(self, *arguments):
        press()
        start(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.RunFolder, "start", pressed)
        with pytest.raises(KeyboardInterrupt, match="to go on"):
            tiny()
    assert steps.begun == 0
    assert len(fastnas.search(resume=tmp_path / "run").metrics) == 2


def test_the_handler_is_there_for_the_search_alone(tiny, tmp_path, steps):
    seen = []
    steps.during = lambda _: seen.append(signal.getsignal(signal.SIGINT))
    tiny(epochs=1)
    assert signal.default_int_handler not in seen
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(fastnas.FastnasError, match="NaN or infinity in the loss"):
        tiny(learning_rate=1e30, learning_rate_min=0.0, out=tmp_path / "fails")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("theirs", [signal.SIG_IGN, lambda *_: None], ids=["ignored", "handled"])
def test_the_callers_own_handler_stays(tiny, steps, theirs):
    steps.during = lambda _: press()
    signal.signal(signal.SIGINT, theirs)
    try:
        assert len(tiny().metrics) == 2
        assert signal.getsignal(signal.SIGINT) is theirs
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_search_in_another_thread_leaves_signals_alone(tiny, steps):
    seen, results = [], []
    steps.during = lambda _: seen.append(signal.getsignal(signal.SIGINT))
    thread = threading.Thread(target=lambda: results.append(tiny()))
    thread.start()
    thread.join()
    assert len(results[0].metrics) == 2
    assert seen == [signal.default_int_handler] * STEPS
