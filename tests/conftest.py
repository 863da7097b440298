"""Settings of all tests."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Networks here are so small that threads cost more than they give, above all on a busy machine."""
    torch.set_num_threads(1)


# Networks of real digits; what makes them is imported where it is needed only, since that takes a while.


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a network of each kind, to read from and to add to."""
    from test_stages import begin

    return begin(tmp_path_factory.mktemp("checkpoints") / "default")


@pytest.fixture
def workplace(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own to call commands in, whose run holds what `run` began with; returns the run."""
    from test_stages import copied, enter

    return enter(copied(run, tmp_path), monkeypatch)


@pytest.fixture(scope="session")
def copy_of_run(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from test_stages import copied

    return copied(run, tmp_path_factory.mktemp("unchanged"))


@pytest.fixture
def unchanged(copy_of_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workplace for commands that change nothing, and so one for all of them."""
    from test_stages import enter

    return enter(copy_of_run, monkeypatch)
