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


def together(measurements: Sequence[Measurement[Rows]]) -> Measurement[Rows]:
    """Several in one pass over the images; the rows of all, in this order."""

    def of_batch(batch: Batch) -> dict[str, Tensor]:
        return {
            f"{place}.{name}": values
            for place, measurement in enumerate(measurements)
            for name, values in measurement.of_batch(batch).items()
        }

    def result(measured: dict[str, Tensor]) -> Rows:
        rows: Rows = []
        for place, measurement in enumerate(measurements):
            prefix = f"{place}."
            own = {name.removeprefix(prefix): values for name, values in measured.items() if name.startswith(prefix)}
            rows += measurement.result(own)
        return rows

    return Measurement(of_batch, result)


def evaluate(measurement: Measurement[Result], batches: Iterable[Batch]) -> Result:
    """The result over all batches."""
    return measurement.result(join([measurement.of_batch(batch) for batch in batches]))
