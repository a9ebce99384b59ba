"""Tables for tests: random ones, and the real one where it is."""

import os
from pathlib import Path

import numpy as np
import pytest

from fastnas.spaces.genotype import NASBENCH201_PRIMITIVES
from fastnas.tables.nasbench201 import CELLS, TRAINING_TIME

DATASETS = ("cifar10", "cifar100", "imagenet16")


def arrays() -> dict[str, np.ndarray]:
    """The arrays of a NAS-Bench-201 file: every cell in a random order, with random results."""
    draw = np.random.default_rng(0)
    cells = draw.permutation(CELLS)
    found = {
        "op_names": np.array(NASBENCH201_PRIMITIVES),
        "ops": (cells[:, None] // 5 ** np.arange(6) % 5).astype(np.uint8),
    }
    for data in DATASETS:
        for column in ("val200", "test200", "val12", "test12"):
            found[f"{data}_{column}"] = draw.uniform(10, 95, CELLS).astype(np.float32)
        found[f"{data}_params"] = draw.integers(73306, 1538696, CELLS).astype(np.int32)
        found[f"{data}_mflops"] = draw.uniform(1, 221, CELLS).astype(np.float32)
        found[TRAINING_TIME[data]] = draw.uniform(500, 4000, CELLS).astype(np.float32)
    return found


def real_table() -> Path:
    """The real NAS-Bench-201 table: that of FASTNAS_NASBENCH201, or ../shared/data/nasbench201.npz."""
    default = Path(__file__).parents[3] / "shared/data/nasbench201.npz"
    path = Path(os.environ.get("FASTNAS_NASBENCH201", default))
    if not path.is_file():
        pytest.skip(f"no NAS-Bench-201 table at {path}; FASTNAS_NASBENCH201 may name one")
    return path
