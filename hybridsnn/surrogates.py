"""Surrogate gradients: what stands in for the derivative of a spike with respect to the membrane.

A new surrogate of a known shape is one entry in `SURROGATES`. A new shape is one entry in `SHAPES`, or a subclass that
defines `slope`; the reference kernel then runs it, and `kernel="auto"` chooses that. To make it fast, give it a formula
where the compiled kernels have theirs: `hybridsnn.kernels.neuron.slopes` for the CPU, `cuda_loops` for a GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridsnn.errors import ConfigError

NEVER = 1000  # a neuron that has not fired yet counts as having fired this many steps before the first (STDB)
SPIKE_TIME = "spike-time"  # the shape over time; the others are over the distance to the threshold
SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    SPIKE_TIME: lambda elapsed: torch.exp(-elapsed),
    "triangle": lambda distance: (1 - distance).clamp(min=0),
    "exponential": lambda distance: torch.exp(-distance),
    "sigmoid": lambda distance: 1 / torch.cosh(2 * distance) ** 2,  # the slope of a logistic function of 4 x distance
}  # of a number from 0 on; largest, 1, at 0


@dataclass(frozen=True)
class Surrogate:
    """A shape over the distance to the threshold, or over the time since the last spike.

    A subclass that defines `slope` itself gives its shape a name that is not in `SHAPES`.

    Attributes:
        name, summary: for people.
        shape: a name in `SHAPES`.
        height: the largest value (divided by the threshold if `relative`).
        decay: rate per step of the spike-time exponential.
        never: for the shape over time, a neuron that has not fired yet counts as having fired so many steps before the
            first.
        relative: measure height and distance in units of the threshold, so that scaling currents,
            membrane and threshold together scales the gradient as a derivative must.

    Raises:
        ConfigError: if the shape is unknown, or has its formula in `SHAPES` and another one in a subclass.
    """

    name: str
    summary: str
    shape: str
    height: float
    decay: float = 0.0
    relative: bool = False
    never: int = NEVER

    def __post_init__(self) -> None:
        defines_slope = type(self).slope is not Surrogate.slope
        if defines_slope and self.shape in SHAPES:
            raise ConfigError(
                f"surrogate '{self.name}': has a slope of its own and got the shape '{self.shape}', "
                f"which is defined already; give the shape another name than {', '.join(sorted(SHAPES))}"
            )
        if not defines_slope and self.shape not in SHAPES:
            raise ConfigError(
                f"surrogate '{self.name}': unknown shape '{self.shape}'. Choices: {', '.join(sorted(SHAPES))}; "
                "add it to hybridsnn.surrogates.SHAPES, or define `slope` in a subclass"
            )

    @property
    def needs_membrane(self) -> bool:
        """Whether the backward pass must know the membranes, or only when spikes fell."""
        return self.shape != SPIKE_TIME

    @property
    def needs_clock(self) -> bool:
        """Whether the slope depends on the time since the last spike; a subclass whose slope does says so here."""
        return self.shape == SPIKE_TIME

    def slope(self, membrane: Tensor, threshold: Tensor, since_spike: Tensor) -> Tensor:
        """ds/dU for membranes `[...]` before reset; `since_spike` `[...]` is the time since the last earlier spike.

        Membranes are given where `needs_membrane`, times where `needs_clock`; elsewhere both hold any values.
        """
        width = threshold if self.relative else torch.ones_like(threshold)
        profile = SHAPES[self.shape]
        if self.shape == SPIKE_TIME:
            return self.height / width * profile(self.decay * since_spike.to(membrane.dtype))
        return self.height / width * profile((membrane - threshold).abs() / width)


SURROGATES = {
    surrogate.name: surrogate
    for surrogate in (
        Surrogate(
            "spike-time",
            "(0.3 / threshold) exp(-0.01 steps since the last spike): STDB, Rathi et al., ICLR 2020, eq. 7",
            SPIKE_TIME, height=0.3, decay=0.01, relative=True,
        ),
        Surrogate(
            "linear",
            "(0.3 / threshold) max(0, 1 - |U / threshold - 1|): Bellec et al., NeurIPS 2018",
            "triangle", height=0.3, relative=True,
        ),
        Surrogate("exponential", "exp(-|U - threshold|): the STOP paper", "exponential", height=1.0),
        Surrogate(
            "sigmoid",
            "the slope of a logistic function of 4 (U / threshold - 1): rate-based back-propagation",
            "sigmoid", height=1.0, relative=True,
        ),
        Surrogate("triangle", "max(0, 1 - |U - threshold|): the STOP paper's code", "triangle", height=1.0),
    )
}  # fmt: skip
