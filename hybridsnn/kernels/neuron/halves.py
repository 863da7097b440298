"""bfloat16 in compiled loops. numpy lacks it, so loops see 16-bit words: the upper halves of float32 numbers."""

from typing import Any

import numpy as np
import torch
from numba import extending, types
from torch import Tensor

from hybridsnn.kernels.compilation import compiled

ONE, NAN = np.uint16(0x3F80), np.uint16(0x7FC0)


def array(values: Tensor) -> Any:
    """A tensor's memory as a numpy array, bfloat16 as words."""
    return values.view(torch.uint16).numpy() if values.dtype == torch.bfloat16 else values.numpy()


def _one(row: Any) -> Any:
    raise NotImplementedError  # for compiled code only


def number(value: Any) -> Any:
    """What an element of a row of floats, or of bfloat16, stands for."""
    raise NotImplementedError


def stored(value: Any, row: Any) -> Any:
    """A float in the type of a row; in bfloat16 the nearest, ties to even."""
    raise NotImplementedError


@extending.overload(_one)
def _compile_one(row):  # type: ignore[no-untyped-def]
    return (lambda row: ONE) if row.dtype == types.uint16 else (lambda row: row.dtype.type(1))


@extending.overload(number)
def _compile_number(value):  # type: ignore[no-untyped-def]
    if value != types.uint16:
        return lambda value: value
    return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)


@extending.overload(stored)
def _compile_stored(value, row):  # type: ignore[no-untyped-def]
    if row.dtype != types.uint16:
        return lambda value, row: value

    def nearest(value, row):  # type: ignore[no-untyped-def]
        word = np.float32(value).view(np.uint32)
        rounded = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        return np.uint16(rounded) if value == value else NAN

    return nearest


@compiled(nogil=True)
def one_of(row):  # type: ignore[no-untyped-def]
    """1 in the type of a row."""
    return _one(row)


@compiled(nogil=True)
def widen(row, values):  # type: ignore[no-untyped-def]
    """Write a row of floats, or of bfloat16, to values apart from it."""
    for i in range(values.size):
        values[i] = number(row[i])
