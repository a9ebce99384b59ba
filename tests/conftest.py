"""What every test starts from."""

import os

import pytest
import torch
from hypothesis import settings

# In CI the same examples every time: a failure there is of the change, not of the draw.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


# No search of the tests checks the operators first, or leaves files in the user's cache: tests/doctor asks for it.
os.environ["FASTNAS_FIRST_USE_CHECK"] = "0"


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The tensors of the tests are tiny: a second thread would only be waited for."""
    torch.set_num_threads(1)
