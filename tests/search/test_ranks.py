"""Data-parallel steps: those of one process on the combined batch, and the same on all ranks to the bit."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fastnas.audit.problems import Averaged
from fastnas.bilevel import METHODS, InnerSettings, NotFiniteError, Products
from fastnas.data import Augment, Batches, Dataset, Shard, Windows, streams
from fastnas.runs.ranks import Ranks
from fastnas.search import SearchStep
from fastnas.spaces import make_space
from fastnas.spaces.recurrent import Dropout, supernet
from fastnas.supernet import Graphs, SupernetProblem, build_recurrent, build_supernet, gradients, mean_loss
from tests.graphs_on_host import HostDevice
from tests.several_ranks import on_ranks

# What is tried by so many processes; four share the machine with the other tests.
ON_TEXT = {
    2: ("first-order", "darts", "idarts", "amended", "reverse", "exact products"),
    4: ("darts", "idarts"),
}
ON_IMAGES = {2: ("darts", "idarts"), 4: ("darts",)}
SETTINGS = InnerSettings(learning_rate=0.1, momentum=0.9, weight_decay=3e-4, limit=3)
EXACT = replace(SETTINGS, products=Products("exact", "exact"))
STEPS, STREAMS, T = 2, 8, 2


def moved(step):
    """What all ranks must have alike."""
    net = step.net
    named = {"weights": net.weights.flat, "alpha": net.alphas.flat}
    return named | step.weight_optimiser.state() | step.alpha_optimiser.state()


def plain(report):
    """A report as numbers."""
    watch = report.watch.sentences()
    return [*report.losses.tolist(), report.correct.item(), report.hypergradient_norm.item(), len(watch)]


# Text: no BatchNorm, no dropout. So the combined batch is what the shards are together, but for rounding.


def text_step(method, settings, shard, **options):
    torch.manual_seed(0)
    space = supernet(5, words=11, dropout=Dropout(0.0, 0.0, 0.0, 0.0, 0.0))
    net = build_recurrent(replace(space, normalise=False), dtype=torch.float64)
    states = {
        stream: net.initial_state(len(range(STREAMS)[shard.of(STREAMS)])) for stream in ("train", "val")
    }
    return SearchStep(net, METHODS[method], settings, states=states, grad_clip=0.25, **options)


def text_steps(ranks, name):
    """A few steps; what moved, the reports, and the mean loss of a text whose streams are shared out."""
    shard = ranks.shard
    method, settings = ("idarts", EXACT) if name == "exact products" else (name, SETTINGS)
    step = text_step(method, settings, shard, ranks=ranks)
    texts = torch.randint(11, (2, 400), generator=torch.Generator().manual_seed(1))
    train, val = (iter(Windows(streams(text, STREAMS)[:, shard.of(STREAMS)], 3)) for text in texts)
    reports = [plain(step([next(train) for _ in range(T)], next(val), 0.1 / (1 + i))) for i in range(STEPS)]
    three = Windows(
        streams(texts[0], 3)[:, shard.of(3)], 50, drop_last=False
    )  # fewer streams than four ranks
    loss = mean_loss(step.net, three, lambda: None, ranks.sum_)
    return {name: tensor.clone() for name, tensor in moved(step).items()}, reports, loss


def all_text_steps(ranks, names):
    return {name: text_steps(ranks, name) for name in names}


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_on_text_are_one_process_on_the_combined_batch(size):
    torch.set_num_threads(1)
    expected = all_text_steps(Ranks(), ON_TEXT[size])
    results = on_ranks(size, all_text_steps, ON_TEXT[size])
    for name, (tensors, reports, loss) in expected.items():
        for other in results:
            its_tensors, its_reports, its_loss = other[name]
            for part in tensors:
                assert torch.equal(its_tensors[part], results[0][name][0][part]), (name, part)
                torch.testing.assert_close(
                    its_tensors[part], tensors[part], rtol=1e-9, atol=1e-10, msg=f"{name} {part}"
                )
            assert its_reports == results[0][name][1]
            torch.testing.assert_close(torch.tensor(its_reports), torch.tensor(reports))
            assert its_loss == results[0][name][2]
            assert its_loss == pytest.approx(loss, rel=1e-12)


# Images: each rank's BatchNorm sees its own shard. So one process that averages over the shards is what they are.


def image_batches(shard):
    """Two streams of augmented batches of 8 images in float64, this shard of each."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (40, 3, 8, 8), generator=generator, dtype=torch.uint8)
    data = Dataset("some", images, torch.randint(10, (40,), generator=generator), tuple("0123456789"))

    def stream(seed):
        batches = Batches(
            data,
            8,
            mean=[0.5] * 3,
            std=[0.25] * 3,
            augment=Augment(crop_padding=1, flip=True, cutout=2),
            generator=torch.Generator().manual_seed(seed),
            shard=shard,
        )
        return ((images.double(), labels) for images, labels in batches)

    return stream(1), stream(2)


class Sharded(SearchStep):
    """One process; every batch is a list of shards, over which its oracles and gradients are averaged."""

    def problem(self, train, val):
        pairs = zip(train, val, strict=True)
        return WithoutCarried([SupernetProblem(self.net, t, v) for t, v in pairs])

    def placed(self, stream, batch):
        return batch

    def weight_step(self, batch, learning_rate, watch=None):
        grads, losses, hits = [], [], 0
        self.net.train()
        for images, labels in batch:
            with self.net.frozen_statistics():
                logits = self.net(images)
            losses.append(F.cross_entropy(logits, labels))
            hits += (logits.argmax(1) == labels).sum()
            grads.append(gradients(losses[-1], self.net.weights)[0])
        self.weight_optimiser.step(torch.stack(grads).mean(0), learning_rate)
        return torch.stack(losses).mean().detach(), hits


class WithoutCarried(Averaged):
    carried = ()


def image_step(kind, method, **options):
    torch.manual_seed(0)
    net = build_supernet(make_space("nasbench201", channels=4, layers=1), dtype=torch.float64)
    return kind(net, METHODS[method], SETTINGS, **options)


def image_steps(step, train, val):
    reports = [plain(step([next(train) for _ in range(T)], next(val), 0.1)) for _ in range(2)]
    return {name: tensor.clone() for name, tensor in moved(step).items()}, reports


def rank_image_steps(ranks, methods):
    found = {}
    for method in methods:
        step = image_step(SearchStep, method, ranks=ranks)
        found[method] = image_steps(step, *image_batches(ranks.shard)), step.net.running.flat.clone()
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_on_images_are_one_process_that_averages_over_the_shards(size):
    torch.set_num_threads(1)
    results = on_ranks(size, rank_image_steps, ON_IMAGES[size])
    for method in ON_IMAGES[size]:
        shards = [image_batches(Shard(rank, size)) for rank in range(size)]
        train, val = (zip(*streams, strict=True) for streams in zip(*shards, strict=True))
        tensors, reports = image_steps(image_step(Sharded, method), train, val)
        for result in results:
            its_tensors, its_reports = result[method][0]
            for part in tensors:
                assert torch.equal(its_tensors[part], results[0][method][0][0][part])
                torch.testing.assert_close(its_tensors[part], tensors[part], rtol=1e-9, atol=1e-10)
            assert its_reports == results[0][method][0][1]
            torch.testing.assert_close(torch.tensor(its_reports), torch.tensor(reports))
        statistics = [result[method][1] for result in results]
        assert not torch.equal(statistics[0], statistics[1])  # each rank's own


class Twins(Ranks):
    """As if another rank computed the very same on the very same batch."""

    def __init__(self):
        super().__init__(0, 2)

    def sum_(self, flat):
        return flat.mul_(2)


@pytest.mark.parametrize("method", ["darts", "idarts", "idarts-release"])
def test_meetings_lie_outside_of_the_graphs(method):
    """A mean of twice the same is the same to the bit: with ranks, in graphs, a step is the plain one."""
    alone = image_step(SearchStep, method)
    eager, replayed = copy.deepcopy(alone), copy.deepcopy(alone)
    eager.ranks = replayed.ranks = Twins()
    replayed.graphs = Graphs(HostDevice())
    replayed.graphs.allowed = False
    found = []
    for step in (alone, eager, replayed):
        train, val = ([(x, y) for x, y in stream] for stream in image_batches(Shard()))
        found.append([])
        for i in range(5):
            torch.manual_seed(i)
            report = step(train[:T], val[i], 0.1)
            hits = report.correct.item() // (1 if step is alone else 2)
            found[-1] += [report.losses.tolist(), hits, report.hypergradient_norm.item()]
    assert found[0] == found[1] == found[2]
    assert replayed.graphs.failure is None
    assert len(replayed.graphs) > (method != "idarts-release")  # the weight step among them
    for part, tensor in moved(alone).items():
        assert torch.equal(tensor, moved(eager)[part])
        assert torch.equal(tensor, moved(replayed)[part])


def masks(ranks):
    """What a rank's dropout leaves of ones, twice within one hypergradient's oracles and in the next step."""
    torch.manual_seed(ranks.own_seed(7))
    net = build_supernet(make_space("nasbench201", channels=4, layers=1), dtype=torch.float64)
    seen = []

    class Watched(torch.nn.Dropout):
        def forward(self, x):
            out = super().forward(torch.ones_like(x))
            seen.append(out[0].flatten()[:64].tolist())
            return x

    net.stages[0].append(Watched(0.5))
    step = SearchStep(net, METHODS["idarts"], SETTINGS, ranks=ranks)
    train, val = image_batches(ranks.shard)
    step.alpha_step(next(train), next(val), 0.1)
    step.weight_step(next(train), 0.1)
    return seen


def test_masks_differ_by_rank_but_not_between_the_sides_of_a_difference():
    zero, one = on_ranks(2, masks)
    assert zero[0] != one[0]
    for seen in (zero, one):
        assert all(
            mask == seen[0] for mask in seen[:-1]
        )  # the oracles' and then the weight step's, which draws them
        assert len(seen) == METHODS["idarts"].gradients(SETTINGS) + 1


def spoilt(ranks):
    """A weight step in which the last rank alone reads a NaN; what is raised, and whether anything moved."""
    step = image_step(SearchStep, "first-order", ranks=ranks)
    train, _ = image_batches(ranks.shard)
    step.weight_step(next(train), 0.1)
    before = [tensor.clone() for tensor in (*moved(step).values(), step.net.running.flat)]
    images, labels = next(train)
    if ranks.rank == 1:
        images[0, 0, 0, 0] = torch.nan
    try:
        step.weight_step((images, labels), 0.1)
    except NotFiniteError as error:
        after = (*moved(step).values(), step.net.running.flat)
        return str(error), all(map(torch.equal, before, after))


def test_a_step_that_is_not_finite_on_one_rank_is_made_by_none():
    (zero, kept_zero), (one, kept_one) = on_ranks(2, spoilt)
    assert "the images" in one
    assert "so the step was not made" in zero
    assert kept_zero
    assert kept_one
