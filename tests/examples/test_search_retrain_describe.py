"""The whole experiment: every step reads the folder of the one before."""

import json

import torch

from examples import search_retrain_describe
from fastnas.data import load_dataset, split
from fastnas.retrain import RetrainConfig
from fastnas.retrain.sources import parts
from tests.examples.command import last_line


def test_it_runs_from_end_to_end(tmp_path, capsys):
    search_retrain_describe.main(
        [
            "--space=nasbench201", "--method=first-order", "--search-epochs=1", "--images=130", "--retrain-epochs=1",
            "--device=cpu", "--no-progress", f"--out={tmp_path}",
        ]
    )  # fmt: skip
    result = json.loads((tmp_path / "retrain" / "result.json").read_text())
    genotypes = [(tmp_path / run / "genotype.json").read_text() for run in ("search", "retrain")]
    assert genotypes[0] == genotypes[1]
    assert json.loads(genotypes[0])["arch"] == result["genotype"]
    assert last_line(capsys) == (
        f"{result['parameters']:,} parameters, {result['multiply_adds']:,} multiply-adds, "
        f"{result['test_accuracy']:.1%} of 360 digits that neither step had seen"
    )


def test_the_search_does_not_see_what_the_retraining_is_tested_on():
    """Both draw the digits in the order of the seed; the retraining holds out the last fifth."""
    digits, seed = load_dataset("digits"), 3
    seen = split(digits, 0.5, limit=search_retrain_describe.SEEN, seed=seed)
    config = RetrainConfig.from_options({"genotype": "DARTS_V2", "seed": seed}).resolved()
    train, test = parts(config)
    assert len(train) == search_retrain_describe.SEEN
    assert torch.equal(torch.cat([part.images for part in seen]), train.images)
    assert len(test) == len(digits) - len(train)
