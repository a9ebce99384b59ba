"""A sweep of searches that take a second each."""

import pytest
import yaml

from fastnas.sweep.description import read_sweep

TINY = {
    "space": "nasbench201",
    "dataset": "digits",
    "channels": 2,
    "layers": 1,
    "images": 64,
    "batch_size": 8,
    "epochs": 1,
    "inner_steps": 2,
}


@pytest.fixture
def written(tmp_path):
    """``written(grid=..., search={...})`` is the file of such a sweep; what its grid varies is not fixed."""

    def write(search=None, grid=None, **sections):
        fixed = {
            name: value for name, value in {**TINY, **(search or {})}.items() if name not in (grid or {})
        }
        file = tmp_path / "tiny.yaml"
        file.write_text(yaml.safe_dump({"search": fixed, **({"grid": grid} if grid else {}), **sections}))
        return file

    return write


@pytest.fixture
def tiny(written):
    """The same, read."""
    return lambda *overrides, **sections: read_sweep(written(**sections), overrides)
