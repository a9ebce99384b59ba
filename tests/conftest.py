"""What every test starts from."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The tensors of the tests are tiny: a second thread would only be waited for."""
    torch.set_num_threads(1)
