"""Timing of several ways to do one thing: in turns, so that whatever else the machine does hits all of them."""

import time
from collections.abc import Callable

import pandas as pd
import torch


def in_turns(ways: dict[str, Callable[[], object]], repeats: int) -> pd.DataFrame:
    """Seconds of each way: columns by name, one row for each round. A first round that is not counted warms up."""
    rounds = []
    for _ in range(repeats + 1):
        row = {}
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()  # a call returns before the device is done
            row[name] = time.perf_counter() - start
        rounds.append(row)
    return pd.DataFrame(rounds[1:])


def ratios(seconds: pd.DataFrame, to: str) -> pd.DataFrame:
    """For each way the median over the rounds of its time in units of that of `to`, and the smallest and largest."""
    relative = seconds.div(seconds[to], axis=0)
    return pd.DataFrame({"median": relative.median(), "smallest": relative.min(), "largest": relative.max()})
