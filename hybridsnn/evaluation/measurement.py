"""A pass over images: what it is to find out, batch by batch, so that it can be cut off after any."""

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
    """What to measure, and what follows from it.

    Attributes:
        of_batch: tensors on the CPU, with a first dimension along which those of all batches are joined.
        result: what follows from those of all batches.
    """

    of_batch: Callable[[Batch], dict[str, Tensor]]
    result: Callable[[dict[str, Tensor]], Result]


def join(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What was measured on several batches, as if on one."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def evaluate(measurement: Measurement[Result], batches: Iterable[Batch]) -> Result:
    """What a whole pass finds out."""
    return measurement.result(join([measurement.of_batch(batch) for batch in batches]))
