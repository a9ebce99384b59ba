"""``python -m fastnas.describe --memory``: by the flags of a search or of a retraining, without their data."""

import json
import subprocess
import sys

import pytest
import torch

from fastnas._measure import peak_bytes
from fastnas.describe import main
from fastnas.describe.memory import Asked, ShapeSource, shape_of
from fastnas.retrain import RetrainConfig
from fastnas.retrain.images import ImageTrainer
from fastnas.retrain.memory import run_step
from fastnas.retrain.text import TextTrainer
from fastnas.runs.interrupt import Interrupt
from fastnas.search import SearchConfig
from fastnas.search.engine import Search
from fastnas.search.memory import search_forecast
from fastnas.spaces import read_genotype
from tests.corpora import write_corpus

CPU = torch.device("cpu")
SMALL = "--device cpu --threads 1 --channels 4 --layers 2"


@pytest.fixture
def described(capsys):
    """``described(flags)`` is the forecast that they print."""

    def run(flags):
        main(["--memory", "--json", *flags.split()])
        return json.loads(capsys.readouterr().out)

    return run


def test_it_is_the_forecast_of_the_search_with_those_flags(described):
    found = described(
        "--space s2 --method darts --batch-size 40 --layers 4 --device cpu --threads 1 --memory-limit 1GiB"
    )
    options = {
        "space": "s2",
        "method": "darts",
        "batch_size": 40,
        "device": "cpu",
        "layers": 4,
    }
    forecast = search_forecast(Search(SearchConfig.from_options(options).resolved(), CPU, Interrupt()))
    held = 1797 * (64 + 8)  # the whole set and both splits
    assert found["resident_bytes"]["data set"] == 2 * held
    assert found["peak_bytes"] == forecast.peak() + held
    assert found["limit_bytes"] == 1 << 30
    assert found["largest_batch"] == pytest.approx(forecast.largest(1 << 30), rel=1e-3)
    assert found["recompute"]["peak_bytes"] < found["peak_bytes"]


def test_published_sets_are_not_read(described):
    found = described(
        f"--space nasbench201 --dataset cifar100 --method first-order {SMALL} --backend reference"
    )
    assert found["resident_bytes"]["data set"] == 2 * 50_000 * (3 * 32 * 32 + 8)
    assert found["batch"] == 64
    assert found["limit_bytes"] > 0
    assert "recompute" not in found


def test_an_image_folder_that_is_not_there_yet(described):
    flags = f"--dataset folder --space nasbench201 --method first-order {SMALL}"
    small = described(f"{flags} --image-size 16 --classes 7 --image-channels 1")
    large = described(f"{flags} --image-size 32 --classes 7 --image-channels 1 --images 100")
    assert large["bytes_each"] > 3.5 * small["bytes_each"]
    assert small["resident_bytes"]["data set"] == 0
    assert large["resident_bytes"]["data set"] > 100 * 32 * 32


@pytest.mark.parametrize("batch", [3, 40])
def test_a_retraining_takes_what_is_forecast(described, batch):
    flags = "--genotype DARTS_V2 --dataset cifar10 --auxiliary 0"
    found = described(f"{flags} --batch-size {batch} {SMALL}")
    config = RetrainConfig.from_options(
        {
            "genotype": "DARTS_V2",
            "dataset": "cifar10",
            "auxiliary": 0.0,
            "device": "cpu",
            "channels": 4,
            "layers": 2,
        }
    ).resolved()
    source = ShapeSource(shape_of(config, Asked()), 50_000, 10_000)
    trainer = ImageTrainer(config, read_genotype("darts", "DARTS_V2"), CPU, Interrupt(), source)
    measured = peak_bytes(lambda: run_step(trainer, batch))
    data = 60_000 * (3072 + 8)
    assert found["resident_bytes"].pop("data set") == data
    resident = sum(found["resident_bytes"].values())
    assert found["peak_bytes"] - data - resident == pytest.approx(measured, rel=0.1)
    assert resident == sum(4 * tensor.numel() for tensor in trainer.tensors().values())


def test_a_retraining_on_text_takes_what_is_forecast(described, tmp_path):
    data = write_corpus(tmp_path)
    flags = (
        f"--genotype DARTS_V2 --dataset ptb --data {data} --hidden-size 8 --bptt 5 --device cpu --threads 1"
    )
    found = described(f"{flags} --batch-size 20")
    options = {
        "genotype": "DARTS_V2",
        "dataset": "ptb",
        "data": data,
        "hidden_size": 8,
        "bptt": 5,
        "device": "cpu",
    }
    config = RetrainConfig.from_options({**options, "batch_size": 4}).resolved()
    trainer = TextTrainer(config, read_genotype("recurrent", "DARTS_V2"), CPU, Interrupt())
    measured = peak_bytes(lambda: run_step(trainer, 20))
    assert found["peak_bytes"] - sum(found["resident_bytes"].values()) == pytest.approx(measured, rel=0.1)
    assert found["unit"] == "streams"


def test_the_table(capsys):
    main(f"--memory --space s2 --method first-order --batch-size 10 {SMALL} --memory-limit 2MiB".split())
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "peak memory of a search step: first-order in s2, 10 images in a batch"
    assert any(line.split()[:3] == ["10", "images", "of"] for line in printed)
    assert printed[-2].startswith("largest batch in 2.0 MiB, a tenth left free: ")
    assert printed[-1].startswith("with --recompute: peak ")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--dataset folder", "folder: give its place with --data, or --image-size and --classes"),
        (
            "--memory-limit much",
            "--memory-limit must be a size of at least 1 MiB such as 24GiB or 800MB, got 'much'",
        ),
        ("--classes 0", "--classes must be at least 1, got 0"),
        ("--image-channels 0", "--image-channels must be at least 1, got 0"),
        ("--resume runs/one", "--memory forecasts a new run: give its flags in place of --resume"),
        ("--genotype runs/none", "runs/none"),
        ("--channels 10000000000000", "channels must be at most 65,536"),
    ],
)
def test_mistakes_are_one_sentence(flags, sentence, capsys):
    with pytest.raises(SystemExit):
        main(["--memory", *flags.split()])
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1


def test_the_module_runs_without_a_word_beside_its_table():
    """Nothing on the standard error: neither of Python about a module found twice, nor of torch's allocator."""
    flags = "--memory --space recurrent --dataset ptb --hidden-size 4 --classes 20 --bptt 3 --batch-size 4 --device cpu"
    command = [sys.executable, "-m", "fastnas.describe", *flags.split()]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.startswith("peak memory of a search step: idarts in recurrent, 4 streams in a batch")
    assert not found.stderr
