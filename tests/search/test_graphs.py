"""Searches whose steps are captured and replayed: the numbers of those that are not, to the bit."""

import copy

import pytest
import torch

import fastnas
from fastnas import FastnasError
from fastnas.bilevel import METHODS, InnerSettings
from fastnas.runs import optimiser
from fastnas.runs.checkpoint import put_back, put_back_random_states, random_states
from fastnas.runs.optimiser import Sgd
from fastnas.search import SearchConfig, SearchStep, engine
from fastnas.search.checkpoint import moving_tensors
from fastnas.spaces import make_space
from fastnas.supernet import Graphs, build_supernet
from fastnas.supernet.graphs import WARM_UP
from tests.checkpoints import forget
from tests.graphs_on_host import HostDevice

CPU = torch.device("cpu")

SPACES = {"darts": {"channels": 2, "layers": 2}, "nasbench201": {"channels": 4, "layers": 1}}
SETTINGS = InnerSettings(learning_rate=0.1, momentum=0.9, weight_decay=3e-4)
RATES = [0.1, 0.1, 0.1, 0.1, 0.05, 0.02]


def search_step(space="nasbench201", method="idarts", graphs=None, dropout=False):
    torch.manual_seed(0)
    net = build_supernet(make_space(space, **SPACES[space]))
    if dropout:
        net.stages[0].append(torch.nn.Dropout(0.5))
    return SearchStep(net, METHODS[method], SETTINGS, graphs=graphs)


def batches(seed, count=2):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(4, 3, 8, 8, generator=generator), torch.randint(0, 10, (4,), generator=generator))
        for _ in range(count + 1)
    ]


def run(step, first=0, last=6):
    """Steps ``first`` to ``last``; what they reported."""
    reports = []
    for i in range(first, last):
        val, *train = batches(i)
        torch.manual_seed(i)
        report = step(train, val, RATES[i])
        reports += [report.losses, report.correct, report.hypergradient_norm, torch.get_rng_state()]
    return reports


def state(step):
    net = step.net
    parts = [net.weights.flat, net.alphas.flat, net.running.flat]
    return [*parts, *step.weight_optimiser.state().values(), *step.alpha_optimiser.state().values()]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("method", ["first-order", "darts", "amended", "idarts", "t1-t2", "reverse"])
def test_replayed_steps_are_the_eager_ones(space, method):
    """Weights, alpha, running statistics, optimisers, reports and random state; the learning rate falls meanwhile."""
    graphs = Graphs(HostDevice())
    eager, replayed = search_step(space, method, dropout=True), search_step(space, method, None, dropout=True)
    replayed.graphs = graphs
    graphs.allowed = False
    assert equal(run(eager), run(replayed))
    assert equal(state(eager), state(replayed))
    oracles = {"first-order": 1, "t1-t2": 2}.get(method, 3)
    assert (len(graphs), graphs.failure) == (oracles + 1, None)
    # All functions warm up before the first is captured.
    calls = 2 + (METHODS[method].gradients(SETTINGS) if method != "reverse" else 1 + 5 * 2)
    assert graphs.device.warm_ups == WARM_UP * calls
    assert graphs.device.replays == (len(RATES) - WARM_UP) * calls


def test_a_weight_step_with_its_optimiser_is_one_graph_for_all_learning_rates(monkeypatch):
    graphs = Graphs(HostDevice())
    eager, replayed = search_step(), search_step(graphs=graphs)
    assert equal(run(eager), run(replayed))
    assert equal(state(eager), state(replayed))
    # The last graphs would draw the weights to the same place at another rate, were it a number of Python's.
    monkeypatch.setattr(optimiser, "sgd_step_", None)
    before = replayed.net.weights.flat.clone()
    replayed.weight_step(batches(0)[0], 0.0)
    assert torch.equal(replayed.net.weights.flat, before)


def test_a_learning_rate_is_written_to_the_device_when_it_changes():
    sgd = Sgd(torch.zeros(2), momentum=0.9, weight_decay=0.0, clip=5.0)
    for rate in (0.1, 0.1, 0.05):
        version = sgd.rate._version
        changed = rate != sgd.rate
        sgd.set_rate(rate)
        assert sgd.rate == rate
        assert (sgd.rate._version > version) == changed


def test_graphs_survive_a_restored_checkpoint():
    graphs = Graphs(HostDevice())
    eager, replayed = search_step(), search_step(graphs=graphs)
    run(eager, 0, 2)
    saved = {name: tensor.clone() for name, tensor in moving_tensors(eager).items()} | random_states(CPU)
    run(replayed, 0, 5)  # somewhere else, its graphs captured
    assert len(graphs) == 4
    put_back("a run", saved, moving_tensors(replayed))
    put_back_random_states(saved, CPU)
    assert equal(state(eager), state(replayed))
    assert equal(run(eager, 2), run(replayed, 2))
    assert equal(state(eager), state(replayed))
    assert graphs.device.captures == 4


def test_a_copied_step_goes_on_by_itself():
    step = search_step(graphs=Graphs(HostDevice()))
    run(step, 0, 5)
    other = copy.deepcopy(step)
    assert equal(run(step, 5), run(other, 5))
    assert equal(state(step), state(other))
    assert step.net.weights.flat.data_ptr() != other.net.weights.flat.data_ptr()
    assert len(step.graphs) == 4 > len(other.graphs)


def test_the_share_of_a_batch_is_made_once_for_each_size():
    """Made out of Python numbers in each step, it would wait for the device, and could not be captured."""
    step = search_step()
    cells = step.net._fused.values()
    for size in (4, 4, 3, 4):
        step.weight_step(tuple(part[:size] for part in batches(0)[0]), 0.1)
    assert [len(cell._shares) for cell in cells] == [2] * len(cells)


@pytest.fixture
def on_host(monkeypatch):
    """Searches on the CPU use graphs; the devices that they made."""
    devices = []

    def graphs(device, *, say=None):
        devices.append(HostDevice())
        return Graphs(devices[-1], say=say)

    monkeypatch.setattr(engine, "cuda_graphs", graphs)
    return devices


def rows(result):
    return [
        {k: v for k, v in row.items() if "second" not in k and "memory" not in k} for row in result.metrics
    ]


@pytest.mark.parametrize("space", SPACES)
def test_a_whole_search_with_graphs_gives_the_same_numbers(tiny, on_host, tmp_path, space):
    """32 images in batches of 8, T = 2: two steps an epoch; and a run resumed without graphs ends the same."""
    options = {"space": space, "epochs": 3}
    plain = tiny(**options, graphs="off", out=tmp_path / "plain")
    assert not on_host
    graphed = tiny(**options, out=tmp_path / "graphed")
    assert rows(plain) == rows(graphed)
    assert all(torch.equal(plain.alphas[name], graphed.alphas[name]) for name in plain.alphas)
    assert (on_host[0].captures, on_host[0].replays) == (4, 27)
    forget(tmp_path / "graphed")
    again = fastnas.search(resume=tmp_path / "graphed", graphs="off")
    assert rows(again) == rows(plain)


def test_a_search_goes_on_when_a_capture_fails(tiny, on_host, monkeypatch, capsys):
    def capture(device, function):
        raise RuntimeError("CUDA error: no memory\nand more about it")

    monkeypatch.setattr(HostDevice, "capture", capture)
    plain = tiny(epochs=3, graphs="off")
    found = tiny(epochs=3, out=plain.out.with_name("failing"))
    assert rows(found) == rows(plain)
    said = [line for line in capsys.readouterr().err.splitlines() if "graph" in line]
    assert said == [
        "weight_step could not be captured in a CUDA graph, so this run goes on without graphs: CUDA error: no memory"
    ]


def test_graphs_on_a_cpu_are_one_sentence(tiny):
    with pytest.raises(
        FastnasError, match="--graphs on needs a GPU, but this search runs on cpu; leave it out"
    ):
        tiny(graphs="on")
    with pytest.raises(FastnasError, match="unknown graphs 'always'; known are auto, on, off"):
        tiny(graphs="always")


def test_graphs_do_not_make_another_trajectory():
    config = SearchConfig()
    assert config.run.graphs == "auto"
    assert SearchConfig.from_options({"graphs": "off"}).differences(config) == []
