"""Whole searches on real images: what they leave behind, that they repeat and resume to the bit."""

import fcntl
import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch

import fastnas
from fastnas import FastnasError
from fastnas.bilevel import METHODS
from fastnas.runs.checkpoint import Checkpoints
from fastnas.search import images
from fastnas.search.config import OptimiserConfig
from fastnas.search.engine import learning_rate
from fastnas.spaces import CellString, Genotype
from tests.checkpoints import forget
from tests.interrupted import interrupted_in


def same(a, b):
    return all(torch.equal(a.alphas[name], b.alphas[name]) for name in a.alphas)


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "exact"])
def test_every_method_searches_every_space(tiny, space, method):
    result = tiny(space=space, method=method, epochs=1, solver_steps=2, rank=2)
    assert isinstance(result.genotype, Genotype if space == "darts" else CellString)
    assert all(torch.isfinite(alpha).all() for alpha in result.alphas.values())
    assert result.metrics[0]["hypergradient_norm"] > 0


def test_exact_searches_where_the_hessian_can_be_written_out(tiny):
    small = {"channels": 1, "images": 16, "batch_size": 4, "epochs": 1}
    result = tiny(space="nasbench201", method="exact", difference_scheme="forward", **small)
    assert all(torch.isfinite(alpha).all() for alpha in result.alphas.values())
    assert result.metrics[0]["hypergradient_norm"] > 0


def test_exact_says_before_it_starts_that_there_are_too_many_weights(tiny, tmp_path):
    with pytest.raises(
        FastnasError, match=r"--method exact writes the Hessian out, for at most 5,000 weights, and"
    ):
        tiny(method="exact")
    assert not (tmp_path / "run").exists()


def test_the_run_folder_holds_everything(tiny):
    result = tiny(method="first-order")
    config = json.loads((result.out / "config.json").read_text())
    assert config["config"]["channels"] == 2
    assert config["config"]["learning_rate"] == 0.025
    assert set(config["config"]) == set(result.config.to_options())
    rows = [json.loads(line) for line in (result.out / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.metrics
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        assert 0 <= row["train_accuracy"] <= 1
        assert 0 <= row["val_accuracy"] <= 1
        assert 0 < row["alpha_entropy"] <= math.log(8) + 1e-6
        assert row["peak_memory_bytes"] > 2**20
        assert row["seconds"] > 0
    for epoch in (1, 2):
        text = (result.out / "genotypes" / f"epoch-{epoch:03d}.json").read_text()
        genotype = Genotype.parse(text)
        assert str(genotype) == rows[epoch - 1]["genotype"]
        assert rows[epoch - 1]["skip_share"] == genotype.skip_share()
    assert Genotype.parse((result.out / "genotype.json").read_text()) == result.genotype


def test_a_search_learns(tiny):
    """After a few epochs on real digits the training loss is well below chance, log 10."""
    result = tiny(method="first-order", images=600, batch_size=16, channels=4, epochs=3, inner_steps=1)
    assert result.metrics[-1]["train_loss"] < 0.8 * math.log(10)
    assert result.metrics[-1]["val_accuracy"] > 0.3


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
def test_two_runs_of_one_seed_are_the_same_to_the_bit(tiny, tmp_path, space):
    options = {"space": space, "layers": 3 if space == "darts" else 1}
    a, b = tiny(**options), tiny(**options, out=tmp_path / "again")
    assert same(a, b)
    assert not same(a, tiny(**options, out=tmp_path / "other", seed=1))


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tiny, tmp_path):
    whole = tiny(out=tmp_path / "whole", epochs=3)
    from fastnas.search import loop

    with interrupted_in(loop.Search, 3, r"--resume .*part"):
        tiny(out=tmp_path / "part", epochs=3)
    # A stop between a row and its checkpoint leaves a row too many; a stop in the middle leaves half a row.
    with (tmp_path / "part" / "metrics.jsonl").open("a") as file:
        file.write((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[2] + '\n{"epo')
    with (tmp_path / "part" / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\n")
    torch.manual_seed(123)
    part = fastnas.search(resume=tmp_path / "part")
    assert same(whole, part)
    assert part.genotype == whole.genotype
    volatile = {"seconds", "images_per_second", "peak_memory_bytes"}
    for a, b in zip(whole.metrics, part.metrics, strict=True):
        assert {k: v for k, v in a.items() if k not in volatile} == {
            k: v for k, v in b.items() if k not in volatile
        }
    assert len((tmp_path / "part" / "metrics.jsonl").read_text().splitlines()) == 3
    # Resuming a finished run changes nothing.
    assert same(fastnas.search(resume=tmp_path / "part"), whole)


def test_resuming_before_the_first_checkpoint_starts_over(tiny, tmp_path):
    whole = tiny()
    forget(whole.out)
    assert same(fastnas.search(resume=whole.out), whole)


def test_mistakes_leave_nothing_behind(tiny, tmp_path):
    out = tmp_path / "run"
    for options, sentence in [
        ({"batch_size": 65}, "batch size 65 is larger than"),
        (
            {"inner_steps": 5},
            "--inner-steps 5 is more than the 4 batches .* take fewer inner steps, a smaller",
        ),
        ({"dataset": "cifar10", "data": tmp_path / "absent"}, "absent"),
        ({"dataset": "cifar10"}, "--data"),
        ({"device": "tpu"}, "unknown --device 'tpu'"),
        ({"device": "meta"}, "only cpu and cuda"),
        ({"device": "cpu:3"}, "only cpu and cuda"),
        ({"channels": 10**13}, "channels must be at most 65,536"),
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"channels": 3}, "channels must be even"),
        (
            {"method": "nystroem", "rank": 10**6},
            "--rank 1000000 is more than the .* weights of this supernet",
        ),
    ]:
        with pytest.raises(FastnasError, match=sentence):
            tiny(**options)
        assert not out.exists()


def test_a_supernet_that_has_no_memory_is_one_sentence(tiny, tmp_path, monkeypatch):
    def no_memory(*_, **options):
        return torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(images, "build_supernet", no_memory)
    with pytest.raises(FastnasError, match="--channels 2 --layers 1: no memory for this supernet on cpu"):
        tiny()
    assert not (tmp_path / "run").exists()


def test_a_gpu_needs_an_extension_with_cuda(tiny, tmp_path, monkeypatch):
    from fastnas.search import engine

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(engine, "build_info", lambda: SimpleNamespace(cuda=""))
    with pytest.raises(FastnasError, match="built without CUDA; reinstall it by FASTNAS_CUDA=1"):
        tiny(device="cuda")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_taken_is_refused_untouched(tiny, tmp_path):
    result = tiny(epochs=1)
    before = {file: file.read_bytes() for file in result.out.rglob("*") if file.is_file()}
    with pytest.raises(FastnasError, match=r"already holds a run: .* --resume"):
        tiny()
    assert before == {file: file.read_bytes() for file in result.out.rglob("*") if file.is_file()}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(FastnasError, match="is not empty"):
        tiny(out=tmp_path / "other")
    with pytest.raises(FastnasError, match="is a file"):
        tiny(out=tmp_path / "other" / "thesis.tex")


def test_resume_refuses_what_is_not_this_run(tiny, tmp_path):
    result = tiny(epochs=1)
    with pytest.raises(FastnasError, match="another configuration: it differs in channels, seed"):
        fastnas.search(resume=result.out, channels=4, seed=3)
    with pytest.raises(FastnasError, match="no run to resume"):
        fastnas.search(resume=tmp_path / "absent")
    with pytest.raises(FastnasError, match="leave out --out"):
        fastnas.search(resume=result.out, out=tmp_path / "elsewhere")
    other = tiny(out=tmp_path / "other", epochs=1, seed=5)
    forget(result.out)
    shutil.copytree(other.out / "checkpoints", result.out / "checkpoints")
    with pytest.raises(FastnasError, match=r"00001-0000000.json is of another configuration: .* seed"):
        fastnas.search(resume=result.out)


def test_a_damaged_configuration_is_one_sentence(tiny):
    result = tiny(epochs=1)
    for text in ('{"config": ', '{"config": 3}', "{}", "[]"):
        (result.out / "config.json").write_text(text)
        with pytest.raises(FastnasError, match="no readable configuration"):
            fastnas.search(resume=result.out)


@pytest.mark.parametrize(
    "damage", ['{"epoch": 1}\n', "", "\udcff", None], ids=["edited", "cut", "bytes", "absent"]
)
def test_metrics_come_back_from_the_checkpoint(tiny, damage):
    result = tiny(epochs=1)
    file = result.out / "metrics.jsonl"
    written = file.read_bytes()
    file.unlink()
    if damage is not None:
        file.write_bytes(damage.encode(errors="surrogateescape"))
    assert fastnas.search(resume=result.out).metrics == result.metrics
    assert file.read_bytes() == written


def test_one_process_at_a_time_works_in_a_folder(tiny, tmp_path):
    """A second search is refused, and takes nothing of the first one's away."""
    result = tiny(epochs=1)
    before = (result.out / "config.json").read_bytes()
    with (result.out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(FastnasError, match="another process is searching in"):
            fastnas.search(resume=result.out)
    (tmp_path / "new").mkdir()
    with (tmp_path / "new" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(FastnasError, match="another process is searching in"):
            tiny(out=tmp_path / "new")
    assert (result.out / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("file", "where"), [("00001-0000000.json",) * 2, (None, "while writing")], ids=["a file", "a stream"]
)
def test_a_full_disk_says_where_and_how_to_go_on(tiny, monkeypatch, file, where):
    def full(*_):
        raise OSError(28, "No space left on device", file)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", full)
        with pytest.raises(FastnasError, match=f"No space left on device: {where}; .* --resume"):
            tiny()


def test_a_loss_that_is_not_finite_stops_the_search(tiny):
    wanted = r"epoch 1, step \d: NaN or infinity in the loss, first in the output of aten::convolution in stages.1.pre"
    with pytest.raises(FastnasError, match=wanted + ".* start again with a lower --learning-rate"):
        tiny(learning_rate=1e30, learning_rate_min=0.0)


def test_the_learning_rate_is_the_scheduled_one_of_the_epoch():
    """As torch's cosine schedule gives it, stepped after every epoch."""
    config = OptimiserConfig(epochs=7, learning_rate=0.025, learning_rate_min=0.001)
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 7, eta_min=config.learning_rate_min)
    for epoch in range(1, 8):
        assert learning_rate(config, epoch) == pytest.approx(scheduler.get_last_lr()[0])
        optimiser.step()
        scheduler.step()


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
def test_the_backends_find_the_same_cells_in_float64(tiny, tmp_path, space):
    options = {"dtype": "float64", "space": space, "layers": 3 if space == "darts" else 1}
    a = tiny(**options, backend="fused")
    b = tiny(**options, backend="reference", out=tmp_path / "reference")
    assert a.genotype == b.genotype
    for name in a.alphas:
        torch.testing.assert_close(a.alphas[name], b.alphas[name])


def test_an_npz_and_an_image_folder_are_searched(tiny, tmp_path):
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (24, 12, 12, 3), dtype=np.uint8)
    labels = np.arange(24) % 3
    np.savez(tmp_path / "images.npz", images=images, labels=labels)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "folder" / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    small = {"images": None, "batch_size": 4, "epochs": 1}
    for dataset, path in (("npz", "images.npz"), ("folder", "folder")):
        result = tiny(dataset=dataset, data=tmp_path / path, out=tmp_path / f"run-{dataset}", **small)
        assert len(result.metrics) == 1
