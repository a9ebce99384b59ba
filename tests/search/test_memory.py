"""Peak memory of a search: its forecast against what its steps take, and one sentence where there is not enough."""

import shlex
from itertools import islice

import pytest
import torch

import fastnas
from fastnas._measure import peak_bytes
from fastnas.data import Corpus, Dataset
from fastnas.errors import FastnasError
from fastnas.runs.interrupt import Interrupt
from fastnas.search import SearchConfig, memory
from fastnas.search.__main__ import main
from fastnas.search.checkpoint import moving_tensors
from fastnas.search.engine import Search
from fastnas.search.folder import RunFolder
from fastnas.search.images import ImageTask
from fastnas.search.memory import can_recompute, check_fits, check_memory, resident_parts, search_forecast
from fastnas.search.step import SearchStep
from fastnas.search.text import TextTask
from fastnas.supernet import Graphs
from tests.graphs_on_host import HostDevice

CPU = torch.device("cpu")
CASES = [
    {"method": "first-order", "layers": 2},
    {"method": "idarts", "channels": 8, "neumann_terms": 3, "layers": 2},
    {"method": "idarts", "recompute": True, "layers": 2},
    {"method": "first-order", "backend": "reference", "layers": 1},
    {"method": "cg", "layers": 1},
    {"method": "reverse", "layers": 1},
    {"method": "idarts", "hvp": "exact", "space": "nasbench201"},
    {"method": "idarts", "space": "nasbench201", "inner_steps": 6},
    {"method": "first-order", "space": "nasbench1shot1-1"},
    {"method": "darts", "space": "nasbench1shot1-1", "backend": "reference", "layers": 1},
    {"method": "idarts", "space": "s2"},
    {"method": "first-order", "space": "s2", "backend": "reference", "layers": 2},
    {"method": "idarts", "space": "robustdarts-s4"},
    {"method": "first-order", "drop_path": 0.2, "layers": 1},
    {"method": "idarts", "space": "recurrent"},
    {"method": "first-order", "space": "recurrent", "backend": "reference"},
]
OF_TEXT = {"dataset": "ptb", "hidden_size": 16, "bptt": 3}


def search_of(batch_size=48, **options):
    text = OF_TEXT if options.get("space") == "recurrent" else {}
    config = SearchConfig.from_options(
        {"batch_size": batch_size, "device": "cpu", "threads": 1, **text, **options}
    )
    task, config = None, config.resolved()
    if text:
        words = torch.arange(40 * batch_size) % 50
        task = TextTask(config, CPU, Corpus("ptb", tuple(map(str, range(50))), words, words, words))
    return Search(config, CPU, Interrupt(), task)


def step_of(search):
    """The first step of the search, its batches drawn and augmented."""
    train = [search.cast(batch) for batch in islice(search.train, search.inner_steps)]
    search.step(train, search.cast(next(iter(search.val))), 0.025)


@pytest.mark.parametrize("options", CASES, ids=lambda options: "-".join(map(str, options.values())))
def test_the_forecast_of_a_step_is_what_it_takes(options):
    """From steps on 2, 4 and 8 images, of a step on 48, solver, terms and weight steps all taken."""
    search = search_of(**options)
    growth = search_forecast(search).growth
    search.begin_epoch(1)
    measured = peak_bytes(lambda: step_of(search))
    assert growth.peak(48) == pytest.approx(measured, rel=0.1)
    assert growth.peak(2) < 0.8 * measured  # the batch matters here


def test_in_all_it_is_what_a_search_takes_from_nothing():
    found = []
    measured = peak_bytes(
        lambda: (found.append(search_of(space="nasbench201", channels=24, method="darts")), step_of(found[0]))
    )
    assert search_forecast(found[0]).peak() == pytest.approx(measured, rel=0.1)
    held = sum(resident_parts(found[0].step).values())
    assert held > 0.1 * measured  # not lost in the tolerance


def test_the_largest_batch_fits_and_a_larger_does_not():
    search = search_of(space="s2", method="first-order")
    forecast = search_forecast(search)
    limit = forecast.peak(24) / 0.9
    assert forecast.largest(limit) == 24
    assert search_forecast(search, recompute=True).largest(limit) > 24


@pytest.mark.parametrize("options", [{"space": "s2"}, {"space": "recurrent"}], ids=["images", "text"])
def test_a_forecast_leaves_no_trace(options):
    search = search_of(**options)
    torch.manual_seed(5)
    before = {name: tensor.clone() for name, tensor in moving_tensors(search.step).items()}
    generators = [part.generator for part in (search.train, search.val) if hasattr(part, "generator")]
    states = torch.get_rng_state(), [generator.get_state() for generator in generators]
    search_forecast(search, recompute=True)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert all(
        torch.equal(generator.get_state(), state)
        for generator, state in zip(generators, states[1], strict=True)
    )
    for name, tensor in moving_tensors(search.step).items():
        assert torch.equal(tensor, before[name]), name
    assert not getattr(search.net, "recompute", False)


def test_what_graphs_keep_is_added():
    """Outputs of each function, a batch, and an evaluation's passes."""
    search = search_of(space="s2", method="darts")
    plain = search_forecast(search)
    search.step.graphs = Graphs(HostDevice())
    found = search_forecast(search)
    assert found.growth == plain.growth
    assert plain.beside.peak(48) == 0
    weights, alphas = 4 * len(search.net.weights), 4 * len(search.net.alphas)
    outputs = 2 * weights + 2 * alphas  # val_grads gives both, weight_step none, train_grad_alpha is one more
    batch = 48 * (64 * 4 + 8)

    @torch.no_grad()
    def evaluate():
        search.net.eval()
        search.net(torch.zeros(48, 1, 8, 8))

    least = peak_bytes(evaluate) + weights + 2 * alphas + batch
    assert least <= found.beside.peak(48) <= least + outputs
    assert not len(search.step.graphs)


# ---------------------------------------------------------------------------- before the first step


def sentence(call):
    with pytest.raises(FastnasError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_too_little_is_said_before_the_first_step():
    search = search_of(space="s2", method="first-order")
    forecast = search_forecast(search)
    peak, less = (found.growth.peak(48) for found in (forecast, search_forecast(search, recompute=True)))
    check_fits(search, int(peak) + 1)
    told = sentence(lambda: check_fits(search, int(peak) - 1))
    assert "--batch-size 48 needs about " in told
    assert "take --recompute, with which it is " in told
    largest = int(told.partition("take --batch-size ")[2].split(",")[0])
    assert forecast.growth.peak(largest) <= 0.9 * peak < forecast.growth.peak(largest + 1)
    told = sentence(lambda: check_fits(search, int(less) - 1))
    assert "--recompute" not in told
    told = sentence(lambda: check_fits(search, 1000))
    assert told.startswith("--channels 4 --layers ")
    assert "take a smaller supernet" in told


def test_a_resumed_run_keeps_its_batch(tmp_path):
    search = search_of(resume=tmp_path, space="s2", backend="reference", layers=1, method="first-order")
    told = sentence(lambda: check_fits(search, int(search_forecast(search).growth.peak(48)) - 1))
    assert "take" not in told
    assert told.endswith("go on where more is free: a resumed run keeps its batch")


def test_only_a_gpu_is_asked_and_not_against_ones_wish(monkeypatch, capsys):
    search, asked = search_of(space="s2"), []
    monkeypatch.setattr(memory, "free_memory", lambda device: asked.append(device) or 1000)
    check_memory(search)
    search.device = torch.device("cuda", 0)
    monkeypatch.setenv("FASTNAS_MEMORY_CHECK", "0")
    check_memory(search)
    assert not asked
    monkeypatch.setenv("FASTNAS_MEMORY_CHECK", "1")
    monkeypatch.setattr(memory, "check_fits", lambda search, free: asked.append(free))
    check_memory(search)
    assert asked == [search.device, 1000]

    def fails(*_):
        raise RuntimeError("Profiler is already enabled on this thread.\nmore")

    monkeypatch.setattr(memory, "check_fits", fails)
    check_memory(search)
    assert (
        capsys.readouterr().err
        == "peak memory is not forecast: Profiler is already enabled on this thread.\n"
    )


# ---------------------------------------------------------------------------- in a step


@pytest.fixture
def full(monkeypatch):
    """``full(most, recomputing, after)``: from the step ``after`` on a larger batch than ``most`` finds no memory."""
    step, calls = SearchStep.__call__, []

    def plant(most, recomputing=0, after=1):
        def planted(self, train, *others):
            calls.append(len(train[0][-1]))
            recompute = getattr(self.net, "recompute", False)
            if len(calls) >= after and calls[-1] > (recomputing if recompute else most):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
            return step(self, train, *others)

        monkeypatch.setattr(SearchStep, "__call__", planted)
        return calls

    yield plant
    monkeypatch.undo()


def test_recompute_goes_on_with_the_run_and_changes_no_number(tiny, full, tmp_path, monkeypatch, capsys):
    options = {"method": "darts", "inner_steps": 1, "images": 64, "batch_size": 8}
    expected = tiny(**options, out=tmp_path / "whole")
    full(5, recomputing=8, after=6)  # in the second epoch, of 4 steps each
    told = sentence(lambda: tiny(**options))
    assert "no memory left on cpu at --batch-size 8: go on by python -m fastnas.search --resume " in told
    assert told.endswith(
        " --recompute, which fits and changes no number, or begin a new run with --batch-size 5, which fits"
    )
    command = told.partition("python -m fastnas.search ")[2].partition(",")[0]
    main(shlex.split(command))
    folders = [RunFolder(tmp_path / name) for name in ("run", "whole")]
    alphas = [folder.newest(expected.config).tensors["alphas"] for folder in folders]
    assert torch.equal(*alphas)


def test_without_it_a_smaller_batch_is_what_is_left(tiny, full, tmp_path):
    calls = full(6)
    told = sentence(lambda: tiny(backend="reference", method="first-order", inner_steps=1))
    assert "go on where more memory is free by python -m fastnas.search --resume" in told
    assert told.endswith("or begin a new run with --batch-size 6, which fits")
    assert calls == [8, 4, 6, 7]
    tiny(
        backend="reference", method="first-order", inner_steps=1, batch_size=6, epochs=1, out=tmp_path / "new"
    )


def test_where_nothing_fits_that_is_said(tiny, full):
    full(1)
    assert "at --batch-size 8, nor at 2 (--channels 2 --layers 1)" in sentence(tiny)


def test_an_evaluation_without_memory_is_told_as_well(tiny, monkeypatch):
    def evaluate(*_):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
        )

    monkeypatch.setattr(ImageTask, "evaluate", evaluate)
    assert "no memory left on cpu at --batch-size 8" in sentence(tiny)


def test_before_the_run_has_a_folder_the_command_line_tells_it(monkeypatch, capsys, tmp_path):
    def best_radius(self):
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    monkeypatch.setattr(Search, "best_radius", best_radius)
    with pytest.raises(SystemExit):
        main(["--difference-radius", "auto", "--device", "cpu", "--out", str(tmp_path / "run")])
    told = capsys.readouterr().err
    assert told.startswith(
        "error: no memory left before the first step; take a smaller network or --batch-size"
    )
    assert told.count("\n") == 1


def test_other_errors_are_left_as_they_are(tiny, monkeypatch):
    def step(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(SearchStep, "__call__", step)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        tiny()


def test_several_processes_try_nothing(tiny, full, monkeypatch):
    calls = full(5)
    monkeypatch.setattr(memory, "is_distributed", lambda: True)
    told = sentence(tiny)
    assert told.endswith("--recompute, or begin a new run with a smaller one")
    assert len(calls) == 1


def test_a_data_set_that_does_not_fit_the_device_is_told(monkeypatch):
    def to(self, device):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Dataset, "to", to)
    told = sentence(lambda: fastnas.search(device="cpu"))
    assert told == "--dataset digits: no memory for its data on cpu"


def test_fused_cells_alone_are_computed_again():
    assert can_recompute(search_of())
    assert not can_recompute(search_of(recompute=True))
    assert not can_recompute(search_of(backend="reference", layers=1))
    assert not can_recompute(search_of(space="recurrent"))
