"""The balancer of the hybrid paper: a layer's threshold is the largest current it gets from spikes."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, fx

from hybridsnn.conversion.balancers.base import MeasuringBalancer, largest
from hybridsnn.conversion.balancers.calibration import Calibration
from hybridsnn.conversion.balancers.sweep import Layer, sweep


class MaximumCurrent(MeasuringBalancer):
    """The largest current that spike trains of the balanced layers before produce (hybrid paper, section 2.2).

    A true maximum over images and steps, in one sweep over the layers: the order of the images does not matter.
    """

    summary: ClassVar[str] = (
        "the largest current that the spike trains before it produce, layer by layer (hybrid paper)"
    )

    calibration_timesteps: int = Field(
        100, gt=0, description="Number of time steps to simulate while measuring; event data may have fewer."
    )

    def measure(self, body: fx.GraphModule, calibration: Calibration) -> dict[str, Tensor]:
        def threshold_of(layer: Layer) -> Tensor:
            return torch.stack([largest(current, layer.per_channel) for current in layer.currents()]).amax(0)

        return sweep(body, calibration, threshold_of, timesteps=self.calibration_timesteps)
