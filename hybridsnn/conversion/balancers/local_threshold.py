"""Local threshold balancing: thresholds grow by the activations that exceed them."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, fx
from torch.nn import functional

from hybridsnn.batch import time_average
from hybridsnn.conversion.activation_scales import thresholds_for_activations
from hybridsnn.conversion.balancers.analog import STEPS
from hybridsnn.conversion.balancers.base import MeasuringBalancer
from hybridsnn.conversion.balancers.calibration import Calibration
from hybridsnn.neurons import SpikingNeuron, along_channels
from hybridsnn.program.graph import Node, Program
from hybridsnn.program.passes import analogue


class LocalThreshold(MeasuringBalancer):
    """Thresholds that are raised by twice the mean excess of the activations of the ANN (LTB).

    From 0, each pass over the images adds `2 mean(max(a - threshold, 0))`, the mean over a layer or channel. Layers see
    what earlier ones give when their activations are clipped at the thresholds so far. A pass has one update for all
    images, so their order does not matter.
    """

    summary: ClassVar[str] = "raised by twice the mean activation above it, pass after pass; nothing is simulated"

    passes: int = Field(10, gt=0, description="Number of passes over the images, with one update each.")

    @torch.no_grad()
    def measure(self, body: fx.GraphModule, calibration: Calibration) -> dict[str, Tensor]:
        program = Program(body.eval())
        thresholds: dict[str, Tensor] = {}
        excess: dict[str, Tensor] = {}

        def clip(node: Node, current: Tensor) -> Tensor:
            assert isinstance(node.module, SpikingNeuron)
            activation = functional.relu(current)
            start = node.module.threshold.new_zeros(node.module.threshold.shape, dtype=torch.float64)
            threshold = along_channels(thresholds.get(node.name, start), activation).to(activation)
            above = (activation - threshold).clamp(min=0)
            axes = [axis for axis in range(above.dim()) if not start.dim() or axis != 1]
            share = start.numel() / (len(calibration.images) * above[0].numel())
            excess[node.name] = excess.get(node.name, start) + above.sum(axes, dtype=torch.float64) * share
            return torch.minimum(activation, threshold) if node.name in thresholds else activation

        for _ in range(self.passes):
            excess.clear()
            for images, _ in calibration.batches(STEPS):
                analogue(program, time_average(images), lambda node, value: None, activation=clip)
            thresholds = {
                name: thresholds.get(name, torch.zeros_like(mean)) + 2 * mean for name, mean in excess.items()
            }
        for name in thresholds:
            calibration.advance(name)
        return thresholds_for_activations(body, thresholds, calibration.encoder.scale)
