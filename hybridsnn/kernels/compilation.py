"""Functions compiled by numba, whose machine code is kept on disk and shared by processes that run at once."""

import fcntl
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba


def compiled(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """`numba.njit(cache=True, **options)`, as a decorator, with a cache that several processes can fill at once.

    numba names the file of a new signature by what the index holds, and writes the index without a lock. Two processes
    that compile two signatures of one function at the same time, as the first two commands after an installation may,
    can choose one name: the index then leads from one signature to the machine code of another.
    """
    if function is None:
        return lambda decorated: compiled(decorated, **options)
    dispatcher = numba.njit(cache=True, **options)(function)
    file = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if file is not None:  # as in numba 0.60 to 0.68
        file.save = lambda key, data: _save(file, key, data)
    return dispatcher


def _save(file: Any, key: Any, data: Any) -> None:
    """In the place of numba's: under a lock, and the code before the index that names it."""
    with _locked(Path(f"{file._index_path}.lock")):
        known = file._load_index()
        name = known.get(key)
        if name is None:
            taken = set(known.values())
            name = next(each for each in map(file._data_name, itertools.count(1)) if each not in taken)
        file._save_data(name, data)
        file._save_index({**known, key: name})


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield  # closing the file unlocks it
