"""Compiled loops on several threads that sleep when they wait, so that a busy machine is not made busier."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="hybridsnn-kernel")


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
    if parts <= 1:
        return [loop(0, count, *arguments)]
    width = math.ceil(count / parts / smallest) * smallest
    bounds = [(low, min(low + width, count)) for low in range(0, count, width)]
    others = [_pool(parts - 1).submit(loop, low, high, *arguments) for low, high in bounds[1:]]
    return [loop(*bounds[0], *arguments), *(other.result() for other in others)]
