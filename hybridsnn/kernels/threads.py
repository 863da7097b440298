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


def over_ranges(loop: Callable[..., None], count: int, smallest: int, *arguments: Any) -> None:
    """Call `loop(low, high, *arguments)` so that the ranges cover 0 <= i < count, on torch's number of threads.

    Args:
        loop: releases Python's lock (numba's `nogil`), and touches only what belongs to its range.
        count: how many items there are.
        smallest: how many items are worth a thread of their own; ranges start at multiples of it.
    """
    parts = min(torch.get_num_threads(), math.ceil(count / smallest))
    if parts <= 1:
        loop(0, count, *arguments)
        return
    width = math.ceil(count / parts / smallest) * smallest
    bounds = [(low, min(low + width, count)) for low in range(0, count, width)]
    others = [_pool(parts - 1).submit(loop, low, high, *arguments) for low, high in bounds[1:]]
    loop(*bounds[0], *arguments)
    for other in others:
        other.result()
