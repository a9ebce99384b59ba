"""What every test starts from."""

import os

import pytest
import torch
from hypothesis import settings

from fastnas.build_info import build_info

# In CI the same examples every time: a failure there is of the change, not of the draw.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


# No search of the tests checks the operators first, or leaves files in the user's cache: tests/doctor asks for it.
os.environ["FASTNAS_FIRST_USE_CHECK"] = "0"


def pytest_collection_modifyitems(items):
    """Tests that are marked ``gpu`` say why they are skipped."""
    reasons = [
        *([] if torch.cuda.is_available() else ["no GPU"]),
        *([] if build_info().cuda else ["a build without CUDA"]),
    ]
    for item in items:
        if reasons and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=" and ".join(reasons)))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The tensors of the tests are tiny: a second thread would only be waited for."""
    torch.set_num_threads(1)
