"""A search that takes a second: the smallest supernet on a few digits."""

import pytest

import fastnas

TINY = {
    "channels": 2,
    "layers": 1,
    "images": 64,
    "batch_size": 8,
    "epochs": 2,
    "inner_steps": 2,
    "threads": 1,
    "device": "cpu",
}


@pytest.fixture
def tiny(tmp_path):
    """``tiny(**options)`` runs that search into a folder of its own."""

    def run(**options):
        return fastnas.search(**{**TINY, "out": tmp_path / "run", **options})

    return run
