"""Capture and replay, on a device of the CPU that keeps a GPU's rules: the logic, and oracles equal to the bit."""

import copy
import warnings
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F

from fastnas import FastnasError
from fastnas.bilevel import METHODS, InnerSettings
from fastnas.supernet import Graphs, SupernetProblem, cuda_graphs
from fastnas.supernet.graphs import CudaDevice
from tests.graphs_on_host import HostDevice
from tests.supernet.networks import batch, supernet

SHAPES = {"darts": ("darts", 2, 2, 2, (8, 8)), "nasbench201": ("nasbench201", 4, 1, 2, (8, 8))}
REFUSED = "operation not permitted when stream is capturing"


def pair(value=1.0, size=3):
    return torch.full((size,), value), torch.zeros(size, dtype=torch.int64)


class Calls:
    """A body that counts its calls: images -> (2 images + offset, their sum), and the same added to ``total``."""

    def __init__(self):
        self.count, self.offset, self.total = 0, torch.zeros(()), torch.zeros(())

    def __call__(self, images, labels):
        self.count += 1
        doubled = images * 2 + self.offset
        self.total += doubled.sum()
        return doubled, doubled.sum()


# ------------------------------------------------------------------------------------------------ the logic


def test_runs_as_it_is_then_captured_then_replayed():
    device, body = HostDevice(), Calls()
    graphs = Graphs(device, warm_up=2)
    for i in range(1, 6):
        body.offset.fill_(i)
        doubled, total = graphs.run("double", body, pair(i))
        assert torch.equal(doubled, torch.full((3,), 3.0 * i))
        assert total == 9 * i
        assert body.total == 9 * i * (i + 1) / 2  # once a run, whether eager, captured or replayed
        assert len(graphs) == (i > 2)
    assert (body.count, device.warm_ups, device.captures, device.replays) == (3, 2, 1, 3)
    assert graphs.failure is None


def test_each_function_has_its_graph_and_all_share_one_pool():
    device, bodies = HostDevice(), [Calls(), Calls(), Calls()]
    graphs = Graphs(device, warm_up=1)
    for _ in range(3):
        for i, body in enumerate(bodies):
            graphs.run("double", body, pair(), of=i)
    assert [body.count for body in bodies] == [2, 2, 2]
    assert len(graphs) == len(device.pool) == 3


def test_what_a_replay_returned_is_gone_after_the_next():
    graphs, bodies = Graphs(HostDevice(), warm_up=0), (Calls(), Calls())
    first, _ = graphs.run("first", bodies[0], pair(1))
    assert torch.equal(first, torch.full((3,), 2.0))
    graphs.run("second", bodies[1], pair(1))
    assert first.isnan().all()
    again, _ = graphs.run("first", bodies[0], pair(5))
    assert again.data_ptr() == first.data_ptr()
    assert torch.equal(first, torch.full((3,), 10.0))


def test_a_batch_of_another_size_runs_as_it_is():
    device, body = HostDevice(), Calls()
    graphs = Graphs(device, warm_up=1)
    for value, size in ((1, 3), (2, 3), (3, 2), (4, 3), (5, 2)):
        doubled, _ = graphs.run("double", body, pair(value, size))
        assert torch.equal(doubled, torch.full((size,), 2.0 * value))
    assert (body.count, device.captures, device.replays) == (4, 1, 2)
    images = torch.ones(3, dtype=torch.float64)  # and one of another precision
    assert graphs.run("double", body, (images, pair()[1]))[0].dtype == torch.float64
    assert body.count == 5


def test_captures_wait_until_they_are_allowed():
    device, body = HostDevice(), Calls()
    graphs = Graphs(device, warm_up=1)
    graphs.allowed = False
    for _ in range(4):
        graphs.run("double", body, pair())
    assert (device.warm_ups, device.captures) == (4, 0)
    graphs.allowed = True
    graphs.run("late", Calls(), pair())
    assert device.captures == 0  # a function of its own warm-up
    graphs.run("double", body, pair())
    assert (device.captures, device.replays) == (1, 1)


def test_a_failed_capture_is_one_sentence_and_everything_goes_on_eagerly():
    device, said = HostDevice(), []
    graphs = Graphs(device, warm_up=1, say=said.append)
    good, total = Calls(), torch.zeros(())

    def bad(images, labels):
        total.add_(1)
        return (images * images.sum().item(),)

    for i in range(1, 5):
        assert torch.equal(graphs.run("good", good, pair(i))[0], torch.full((3,), 2.0 * i))
        assert torch.equal(graphs.run("bad", bad, pair(2))[0], torch.full((3,), 12.0))
        assert total == i
    reason = f"bad could not be captured in a CUDA graph, so this run goes on without graphs: {REFUSED}"
    assert said == [reason]
    assert graphs.failure == reason
    assert len(graphs) == 0
    assert (device.captures, device.replays) == (2, 1)
    assert good.count == 4


def test_by_default_the_sentence_is_a_warning():
    graphs = Graphs(HostDevice(), warm_up=0)
    with pytest.warns(
        RuntimeWarning, match="^item could not be captured in a CUDA graph, so this run goes on"
    ):
        graphs.run("item", lambda x, y: (x + x.sum().item(),), pair())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graphs.run("item", lambda x, y: (x + x.sum().item(),), pair())


def test_a_mistake_of_the_caller_is_no_failed_capture():
    def body(images, labels):
        raise FastnasError("too small")

    graphs = Graphs(HostDevice(), warm_up=1)
    for _ in range(2):
        with pytest.raises(FastnasError, match="too small"):
            graphs.run("body", body, pair())
    assert not graphs.device.is_beside


def test_numbers_drawn_on_the_host_are_a_failed_capture():
    """A GPU's graph would repeat them. Here the generator of the CPU stands for one that is not the device's."""

    class Elsewhere(HostDevice):
        def capture(self, function):
            result = super().capture(function)
            torch.rand(1)
            return result

    said = []
    graphs = Graphs(Elsewhere(), warm_up=0, say=said.append)
    state = torch.get_rng_state()
    graphs.run("drawn", Calls(), pair())
    assert torch.equal(state, torch.get_rng_state())
    assert said[0].endswith("it draws random numbers on the CPU, which a graph would repeat")


def test_a_replay_draws_what_an_eager_run_draws():
    def body(images, labels):
        return (F.dropout(images, 0.5),)

    graphs = Graphs(HostDevice(), warm_up=1)
    batch = pair(1.0, 50)
    torch.manual_seed(3)
    expected = [body(*batch)[0] for _ in range(4)]
    after = torch.get_rng_state()
    torch.manual_seed(3)
    found = [graphs.run("drop", body, batch)[0].clone() for _ in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(after, torch.get_rng_state())
    assert not torch.equal(found[2], found[3])
    # And where the state is kept, every call draws the same.
    torch.manual_seed(3)
    state = torch.get_rng_state()
    for _ in range(4):
        kept = graphs.run("drop", body, batch, of="kept", keep_random_state=True)[0].clone()
        assert torch.equal(kept, expected[0])
        assert torch.equal(state, torch.get_rng_state())
    assert len(graphs) == 2


def test_a_copy_begins_anew():
    graphs = Graphs(HostDevice(), warm_up=0)
    graphs.run("double", Calls(), pair())
    other = copy.deepcopy(graphs)
    assert (len(graphs), len(other)) == (1, 0)
    assert other.device is graphs.device


def test_a_cpu_has_no_cuda_graphs():
    assert cuda_graphs("cpu") is None


# --------------------------------------------------------------------------- the device that stands for a GPU


def captured(function):
    return HostDevice().capture(function)


def test_the_stand_in_bakes_python_numbers_in():
    value, out = [1.0], torch.zeros(2)
    replay, _ = captured(lambda: (out.fill_(value[0]),))
    assert torch.equal(out, torch.zeros(2))  # recording does no work
    value[0] = 7.0
    replay()
    assert torch.equal(out, torch.ones(2))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: torch.tensor([1.0]),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.random.fork_rng(devices=[]).__enter__(),
    ],
)
def test_the_stand_in_refuses_what_a_gpu_refuses(function):
    x = torch.ones(3)
    with pytest.raises(RuntimeError, match=REFUSED):
        captured(lambda: function(x))
    torch.get_rng_state()  # allowed again


def test_the_stand_in_sees_memory_that_was_freed():
    holder = {"x": torch.ones(3)}
    replay, (out,) = captured(lambda: (holder["x"] * 2,))
    replay()
    assert torch.equal(out, torch.full((3,), 2.0))
    del holder["x"]
    with pytest.raises(RuntimeError, match="reads memory that has been freed"):
        replay()


# ------------------------------------------------------------------------------------------------ the oracles


# Not the whole product: the DARTS reference takes many seconds.
SOME = ("first-order", "darts", "amended", "idarts", "t1-t2")  # the others call the same oracles
CASES = [(space, "fused", method) for space in SHAPES for method in SOME]
CASES += [("nasbench201", "reference", method) for method in SOME] + [("darts", "reference", "t1-t2")]


@pytest.mark.parametrize(("space", "backend", "method"), CASES)
def test_a_replayed_hypergradient_is_the_eager_one_and_leaves_no_trace(space, backend, method):
    shape = SHAPES[space]
    net = supernet(shape, backend, torch.float32)
    net.stages[0].append(
        torch.nn.Dropout(0.5)
    )  # the masks must be the same in all oracles, and the state survive
    net.eval()
    momentum = torch.randn_like(net.weights.flat)
    settings = InnerSettings(learning_rate=0.1, momentum=0.9, weight_decay=3e-4, momentum_buffer=momentum)
    device = HostDevice()
    graphs = Graphs(device, warm_up=1)
    for i in range(3):
        batches = batch(shape, torch.float32, seed=2 * i), batch(shape, torch.float32, seed=2 * i + 1)
        torch.manual_seed(i)
        expected = METHODS[method].hypergradient(SupernetProblem(net, *batches), settings)
        before = [part.clone() for part in (net.weights.flat, net.alphas.flat, net.running.flat, momentum)]
        state = torch.get_rng_state()
        found = METHODS[method].hypergradient(SupernetProblem(net, *batches, graphs=graphs), settings)
        assert torch.equal(found, expected)
        after = [net.weights.flat, net.alphas.flat, net.running.flat, momentum]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert torch.equal(state, torch.get_rng_state())
        assert not net.training
        with torch.no_grad():  # another point the next time, as in a search
            net.weights.flat.add_(0.01 * torch.randn_like(net.weights.flat))
            net.alphas.flat.add_(0.1 * torch.randn_like(net.alphas.flat))
            net.running.flat.mul_(0.9)
    oracles = {"first-order": 1, "t1-t2": 2}.get(method, 3)
    assert (len(graphs), device.warm_ups, graphs.failure) == (oracles, oracles, None)
    assert device.replays == 3 * METHODS[method].gradients(settings) - oracles


@pytest.mark.parametrize("space", SHAPES)
def test_what_an_oracle_returns_stays_the_callers_own(space):
    shape = SHAPES[space]
    net = supernet(shape, "fused", torch.float32)
    problem = SupernetProblem(
        net,
        batch(shape, torch.float32),
        batch(shape, torch.float32, seed=5),
        graphs=Graphs(HostDevice(), warm_up=0),
    )
    oracles = [problem.train_grad_w, problem.train_grad_alpha, problem.val_grads, problem.val_grad_alpha]
    results = []
    for oracle in oracles + oracles:
        found = oracle()
        results += [found] if isinstance(found, torch.Tensor) else found
    copies = [result.clone() for result in results]
    for oracle in oracles:
        oracle()
    assert len({result.untyped_storage().data_ptr() for result in results}) == len(results)
    assert all(torch.equal(a, b) for a, b in zip(results, copies, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(results[:5], results[5:], strict=True))
    assert all(result.isfinite().all() for result in results)


def test_a_loss_that_cannot_be_captured_falls_back():
    def loss(logits, labels):
        value = F.cross_entropy(logits, labels)
        seen.append(value.item())
        return value

    seen, said, shape = [], [], SHAPES["nasbench201"]
    net = supernet(shape, "fused", torch.float32)
    batches = batch(shape, torch.float32), batch(shape, torch.float32, seed=5)
    expected = SupernetProblem(net, *batches).train_grad_w()
    problem = SupernetProblem(net, *batches, loss, graphs=Graphs(HostDevice(), warm_up=1, say=said.append))
    assert all(torch.equal(problem.train_grad_w(), expected) for _ in range(3))
    assert said == [
        f"train_grad_w could not be captured in a CUDA graph, so this run goes on without graphs: {REFUSED}"
    ]
    assert len(seen) == 3


# ------------------------------------------------------------------------------- the calls that a GPU would get


@pytest.fixture
def cuda(monkeypatch):
    """torch.cuda as CudaDevice sees it, every call written down; the end of a capture fails if the capture did."""
    log = []

    class Named:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

        def get_state(self):
            return torch.zeros(16, dtype=torch.uint8)

        def clone_state(self):
            return Named("clone")

        def graphsafe_set_state(self, other):
            log.append(f"state of {self.name} is {other.name}")

    class Graph:
        def register_generator_state(self, generator):
            log.append(f"register {generator.name}")

        def replay(self):
            log.append("replay")

    @contextmanager
    def graph(graph, *, pool, stream):
        log.append(f"capture on {stream.name} in {pool}")
        try:
            yield
        finally:
            log.append("end")
            if "sick" in log:
                raise RuntimeError("operation failed due to a previous error during capture")

    @contextmanager
    def stream(which):
        log.append(f"to {which.name}")
        yield
        log.append("back")

    fakes = {
        "init": lambda: None,
        "current_device": lambda: 1,
        "default_generators": (Named("generator 0"), Named("generator 1")),
        "Stream": lambda index: Named(f"side {index}"),
        "current_stream": lambda index: Named(f"current {index}"),
        "graph_pool_handle": lambda: (0, 7),
        "CUDAGraph": Graph,
        "graph": graph,
        "stream": stream,
        "device": lambda index: nullcontext(),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    for name in ("end", "release"):
        at = {"end": "_cuda_endAllocateToPool", "release": "_cuda_releasePool"}[name]
        monkeypatch.setattr(torch._C, at, lambda *a, name=name: log.append((name, *a)), raising=False)
    return log


def test_a_gpu_is_asked_for_one_stream_one_pool_and_its_generator(cuda):
    graphs = cuda_graphs("cuda")
    assert isinstance(graphs.device, CudaDevice)
    for _ in range(5):
        graphs.run("double", Calls(), pair())
    graphs.run("other", Calls(), pair())
    aside = ["side 1 waits for current 1", "to side 1", "back", "current 1 waits for side 1"]
    capture = ["to side 1", "register generator 1", "capture on side 1 in (0, 7)", "end", "back"]
    assert cuda == aside * 3 + [*capture, "replay", "replay"] + aside


def test_a_gpu_is_mended_after_a_failed_capture(cuda):
    def body(images, labels):
        if "capture on side 0 in (0, 7)" in cuda and "end" not in cuda:
            cuda.append("sick")
            raise RuntimeError("CUDA error: operation not permitted\nand much more")
        return (images,)

    said = []
    graphs = cuda_graphs("cuda:0", say=said.append)
    for _ in range(3):
        graphs.run("body", body, pair())
    del cuda[:]
    assert torch.equal(graphs.run("body", body, pair())[0], torch.ones(3))
    # What was said is the cause, not that the capture's end failed.
    assert said[0].endswith("goes on without graphs: CUDA error: operation not permitted")
    assert cuda == [
        "to side 0", "register generator 0", "capture on side 0 in (0, 7)", "sick", "end",
        "state of generator 0 is clone", ("end", 0, (0, 7)), ("release", 0, (0, 7)),
    ]  # fmt: skip
