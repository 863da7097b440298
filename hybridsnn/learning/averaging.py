"""An exponential moving average of a model's weights, to be measured and kept in their place."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """The average of the weights after each update, and of the running statistics of batch norm, which belong to them.

    After update n (from 1) it moves by 1 - min(decay, n / (n + 9)) of the way to the weights, so that it forgets the
    initial ones at once and is worth measuring from the first epoch on. What does not change stays exactly the same.

    Args:
        model: averaged where its tensors are, on any device.
        decay: of the average per update; 0: it is the weights themselves, at no cost.
        tensors: an average to go on with, as `tensors` of an earlier object; empty: the model's own.
    """

    def __init__(self, model: nn.Module, decay: float, tensors: dict[str, Tensor]):
        self._model, self._decay = model, decay
        averaged = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        self._weights = averaged if decay else {}
        self.tensors = {
            name: torch.empty_like(tensor).copy_(tensors.get(name, tensor)) for name, tensor in self._weights.items()
        }

    @torch.no_grad()
    def update(self, number: int) -> None:
        """Take in the weights after update `number`, from 1."""
        if self._weights:
            share = 1 - min(self._decay, number / (number + 9))
            torch._foreach_lerp_([*self.tensors.values()], [*self._weights.values()], share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the model has the average as its weights; a count, such as that of batches, stays its own."""
        own = {name: tensor.clone() for name, tensor in self._weights.items()}
        try:
            _copy(self.tensors, self._weights)
            yield
        finally:
            _copy(own, self._weights)


@torch.no_grad()
def _copy(values: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.copy_(values[name])
