"""Measurements over a data set, batch by batch, so that they can be interrupted after any batch."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from hybridsnn.batch import Batch

Rows = list[dict[str, Any]]  # of a table
Result = TypeVar("Result")


@dataclass(frozen=True)
class Measurement(Generic[Result]):
    """What to measure on each batch, and the result over all.

    Attributes:
        of_batch: named tensors on the CPU; those of all batches are concatenated along the first dimension.
        result: computes the result from the concatenated tensors.
    """

    of_batch: Callable[[Batch], dict[str, Tensor]]
    result: Callable[[dict[str, Tensor]], Result]


def join(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of several batches, concatenated."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def evaluate(measurement: Measurement[Result], batches: Iterable[Batch]) -> Result:
    """The result over all batches."""
    return measurement.result(join([measurement.of_batch(batch) for batch in batches]))
