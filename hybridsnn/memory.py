"""The memory of the tensors of a computation, without what allocators and libraries add."""

import weakref
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of tensors created while it is active, each storage once, until it is freed.

        with LiveMemory() as memory:
            rule.step(...)
        memory.peak

    Tensors created before do not count, nor does memory that a library allocates inside one operation.

    Args:
        counts: whether a tensor counts; all by default.

    Attributes:
        live: bytes alive now.
        peak: the most that were alive at once.
    """

    def __init__(self, counts: Callable[[Tensor], bool] = lambda tensor: True) -> None:
        super().__init__()
        self.counts = counts
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_storage(value) for value in tree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        result = func(*args, **(kwargs or {}))
        for value in tree.tree_leaves(result):
            if isinstance(value, Tensor) and not value.is_meta and _storage(value) not in before and self.counts(value):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _storage(value: Tensor) -> int:
    return value.untyped_storage()._cdata
