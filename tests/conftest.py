"""Settings of all tests."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Networks here are so small that threads cost more than they give, above all on a busy machine."""
    torch.set_num_threads(1)
