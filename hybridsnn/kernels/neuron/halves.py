"""bfloat16 in compiled loops. numpy lacks it, so loops see 16-bit words: the upper halves of float32 numbers."""

from typing import Any

import numba
import numpy as np
import torch
from numba import extending, types
from torch import Tensor

ONE = np.uint16(0x3F80)
NAN = np.uint16(0x7FC0)


def array(values: Tensor) -> Any:
    """A tensor's memory as a numpy array, bfloat16 as words."""
    return values.view(torch.uint16).numpy() if values.dtype == torch.bfloat16 else values.numpy()


@numba.njit(cache=True, nogil=True)
def one_of(row):  # type: ignore[no-untyped-def]
    """1 in the type of a row."""
    return _one(row)


def _one(row: Any) -> Any:
    raise NotImplementedError  # for compiled code only


def widened(row: Any, buffer: Any) -> Any:
    """A row as floats: itself, or bfloat16 widened into the buffer."""
    raise NotImplementedError


def narrowed(values: Any, row: Any) -> None:
    """Write floats to a row of floats, or of bfloat16, to the nearest, ties to even."""
    raise NotImplementedError


@extending.overload(_one)
def _compile_one(row):  # type: ignore[no-untyped-def]
    if row.dtype == types.uint16:
        return lambda row: ONE
    return lambda row: row.dtype.type(1)


@extending.overload(widened)
def _compile_widened(row, buffer):  # type: ignore[no-untyped-def]
    if row.dtype != types.uint16:
        return lambda row, buffer: row

    def widen(row, buffer):  # type: ignore[no-untyped-def]
        words = buffer.view(np.uint32)
        for i in range(row.size):
            words[i] = np.uint32(row[i]) << np.uint32(16)
        return buffer[: row.size]

    return widen


@extending.overload(narrowed)
def _compile_narrowed(values, row):  # type: ignore[no-untyped-def]
    if row.dtype != types.uint16:

        def copy(values, row):  # type: ignore[no-untyped-def]
            for i in range(row.size):
                row[i] = values[i]

        return copy

    def narrow(values, row):  # type: ignore[no-untyped-def]
        words = values.view(np.uint32)
        for i in range(row.size):
            word = words[i]
            nearest = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            row[i] = np.uint16(nearest) if values[i] == values[i] else NAN

    return narrow
