"""What the tests of the operators start from."""

import os

import pytest
import torch

from fastnas.build_info import build_info


@pytest.fixture(autouse=True, scope="session")
def sanitized_where_asked():
    """Under `make sanitize` no other build may pass in the sanitized one's place, in no process."""
    if os.environ.get("FASTNAS_SANITIZE") == "1" and not build_info().sanitizers:
        pytest.exit(
            "FASTNAS_SANITIZE=1, but the fastnas_C that was loaded is no sanitized build", returncode=3
        )


@pytest.fixture
def poisoned():
    """Fresh tensors are full of NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
