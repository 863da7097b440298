"""Data-based normalisation: a layer's threshold follows from the largest activation of the ANN."""

from typing import ClassVar

import torch
from torch import Tensor, fx

from hybridsnn.conversion.activation_scales import thresholds_for_activations
from hybridsnn.conversion.balancers.analog import observe_activations
from hybridsnn.conversion.balancers.base import MeasuringBalancer, largest
from hybridsnn.conversion.balancers.calibration import Calibration
from hybridsnn.neurons import SpikingNeuron


class ActivationMaximum(MeasuringBalancer):
    """The largest activation of the ANN (data-based normalisation, Diehl et al., 2015); nothing is simulated."""

    summary: ClassVar[str] = "the largest activation of the ANN; nothing is simulated"

    @torch.no_grad()
    def measure(self, body: fx.GraphModule, calibration: Calibration) -> dict[str, Tensor]:
        neurons = {name: module for name, module in body.named_modules() if isinstance(module, SpikingNeuron)}
        activations: dict[str, Tensor] = {}

        def observe(name: str, activation: Tensor) -> None:
            peak = largest(activation.unsqueeze(0), per_channel=neurons[name].threshold.dim() == 1)
            activations[name] = torch.maximum(activations[name], peak) if name in activations else peak

        observe_activations(body, calibration, observe)
        for name in activations:
            calibration.advance(name)
        return thresholds_for_activations(body, activations, calibration.encoder.scale)
