"""A retraining that takes a second: the smallest network on a few digits."""

import pytest

from fastnas.retrain import retrain

TINY = {
    "genotype": "DARTS_V2",
    "channels": 2,
    "layers": 1,
    "images": 60,
    "batch_size": 20,
    "epochs": 2,
    "drop_path": 0.3,
    "threads": 1,
    "device": "cpu",
}


@pytest.fixture
def tiny(tmp_path):
    """``tiny(**options)`` runs that retraining into a folder of its own."""

    def run(**options):
        return retrain(**{**TINY, "out": tmp_path / "run", **options})

    return run
