"""Thresholds at which the spikes of each layer come closest to the activations of the ANN."""

from typing import ClassVar

import torch
from torch import Tensor

from hybridsnn.conversion.balancers.base import FittedBalancer, largest
from hybridsnn.conversion.balancers.sweep import Layer

CANDIDATES = 40  # equally spaced from SMALLEST to 1 times the largest activation
SMALLEST = 0.1


class MeanSquaredError(FittedBalancer):
    """The threshold with the smallest mean squared error of `threshold * n / T`, fitted to T.

    n is the number of spikes in T steps of a layer that gets the spikes of the balanced layers before it, and
    `threshold * n / T` is compared with the activation a of the ANN. Candidates are shares of the largest activation,
    then shares between the neighbours of the best of them.
    """

    summary: ClassVar[str] = "fitted to T: the smallest squared error of each layer's output on its own spiking input"

    @torch.no_grad()
    def fit(self, layer: Layer) -> Tensor:
        peaks = [largest(target.unsqueeze(0), layer.per_channel) for target in layer.targets]
        peak = torch.stack(peaks).amax(0)
        spacing = (1 - SMALLEST) / (CANDIDATES - 1)
        coarse = _best(layer, [(SMALLEST + place * spacing) * peak for place in range(CANDIDATES)])
        between = [coarse + step / 4 * spacing * peak for step in range(-3, 4)]
        return _best(layer, between)


def _best(layer: Layer, candidates: list[Tensor]) -> Tensor:
    """The candidate `[]` or `[channels]` with the smallest error; the first of several."""
    gains: Tensor | float = 0.0
    for current, target in layer.sampled():
        gains = gains + torch.stack([_gain(layer, current, target, candidate) for candidate in candidates])
    assert isinstance(gains, Tensor)  # there are images
    return torch.stack(candidates).gather(0, gains.argmax(0, keepdim=True)).squeeze(0)


def _gain(layer: Layer, current: Tensor, target: Tensor, threshold: Tensor) -> Tensor:
    """By how much a sum of squared errors is below that of a silent layer, float64, for each group of neurons.

    Silent candidates gain exactly 0, whatever the order of the images.
    """
    counts = layer.counts(current, threshold)
    axes = [axis for axis in range(target.dim()) if not layer.per_channel or axis != 1]
    products = (counts * target).sum(axes, dtype=torch.float64)
    squares = counts.square().sum(axes, dtype=torch.float64)
    level = threshold.double() / layer.timesteps
    return level * (2 * products - level * squares)
