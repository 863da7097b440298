"""Surrogate gradients: what stands in for the derivative of a spike with respect to the membrane."""

from dataclasses import dataclass

import torch
from torch import Tensor

NEVER = 1000  # a neuron that has not fired yet counts as having fired this many steps before the first (STDB)


@dataclass(frozen=True)
class Surrogate:
    """A shape over the distance to the threshold, or over the time since the last spike.

    Attributes:
        name, summary: for people.
        shape: "spike-time", "triangle", "exponential" or "sigmoid" (the slope of a logistic function of 4 times
            the distance, as a share of its largest).
        height: the largest value (divided by the threshold if `relative`).
        decay: rate per step of the spike-time exponential.
        never: for the spike-time exponential, a neuron that has not fired yet counts as having fired so many steps
            before the first.
        relative: measure height and distance in units of the threshold, so that scaling currents,
            membrane and threshold together scales the gradient as a derivative must.
    """

    name: str
    summary: str
    shape: str
    height: float
    decay: float = 0.0
    relative: bool = False
    never: int = NEVER

    @property
    def needs_membrane(self) -> bool:
        """Whether the backward pass must know the membranes, or only when spikes fell."""
        return self.shape != "spike-time"

    def slope(self, membrane: Tensor, threshold: Tensor, since_spike: Tensor) -> Tensor:
        """ds/dU for membranes `[...]` before reset; `since_spike` `[...]` is the time since the last earlier spike."""
        width = threshold if self.relative else torch.ones_like(threshold)
        if self.shape == "spike-time":
            return self.height / width * torch.exp(-self.decay * since_spike.to(membrane.dtype))
        distance = (membrane - threshold).abs() / width
        if self.shape == "triangle":
            profile = (1 - distance).clamp(min=0)
        elif self.shape == "exponential":
            profile = torch.exp(-distance)
        else:
            decayed = torch.exp(-4 * distance)
            profile = 4 * decayed / (1 + decayed) ** 2
        return self.height / width * profile


SURROGATES = {
    surrogate.name: surrogate
    for surrogate in (
        Surrogate(
            "spike-time",
            "(0.3 / threshold) exp(-0.01 steps since the last spike): STDB, Rathi et al., ICLR 2020, eq. 7",
            "spike-time", height=0.3, decay=0.01, relative=True,
        ),
        Surrogate(
            "linear",
            "(0.3 / threshold) max(0, 1 - |U / threshold - 1|): Bellec et al., NeurIPS 2018",
            "triangle", height=0.3, relative=True,
        ),
        Surrogate("exponential", "exp(-|U - threshold|): the STOP paper", "exponential", height=1.0),
        Surrogate(
            "sigmoid",
            "the slope of a logistic function, 4 (U / threshold - 1): rate-based back-propagation",
            "sigmoid", height=1.0, relative=True,
        ),
        Surrogate("triangle", "max(0, 1 - |U - threshold|): the STOP paper's code", "triangle", height=1.0),
    )
}  # fmt: skip
