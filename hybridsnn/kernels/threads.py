"""Compiled loops on several threads that sleep when they wait, so that a busy machine is not made busier."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch

DENORMAL, ONE = np.float32(1e-40), np.float32(1)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "hybridsnn-kernel", initializer=torch.set_flush_denormal, initargs=(True,))


@contextmanager
def without_denormals() -> Iterator[None]:
    """Take numbers too small for a full mantissa as 0 in this thread, as the threads of `over_ranges` do.

    Errors that have come back through many layers get as small as 1e-38, and processors take a hundred times as long
    for such numbers: a training step of VGG16 in which few neurons fire took four times as long.
    """
    if DENORMAL * ONE == 0:  # already so
        yield
        return
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def over_ranges(loop: Callable[..., Any], count: int, smallest: int, *arguments: Any) -> list[Any]:
    """Call `loop(low, high, *arguments)` so that the ranges cover 0 <= i < count, on torch's number of threads.

    Args:
        loop: releases Python's lock (numba's `nogil`), and touches only what belongs to its range.
        count: how many items there are.
        smallest: how many items are worth a thread of their own; ranges start at multiples of it.

    Returns:
        what the calls gave back, range by range.
    """
    parts = min(torch.get_num_threads(), math.ceil(count / smallest))
    with without_denormals():
        if parts <= 1:
            return [loop(0, count, *arguments)]
        width = math.ceil(count / parts / smallest) * smallest
        bounds = [(low, min(low + width, count)) for low in range(0, count, width)]
        others = [_pool(parts - 1).submit(loop, low, high, *arguments) for low, high in bounds[1:]]
        return [loop(*bounds[0], *arguments), *(other.result() for other in others)]
