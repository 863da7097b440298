"""The activations of the ANN that a spiking body came from."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from hybridsnn.batch import without_time
from hybridsnn.conversion.balancers.calibration import Calibration
from hybridsnn.neurons import SpikingNeuron, TemporalModule

STEPS = 16  # an image counts as so many frames: all its activations are in memory at once


@torch.no_grad()
def observe_activations(body: fx.GraphModule, calibration: Calibration, observe: Callable[[str, Tensor], None]) -> None:
    """Run the ANN on the calibration images; `observe` gets the name of each layer and its activations `[B, *N]`."""
    body.eval()
    for images, _ in calibration.batches(STEPS):
        _AnalogRun(body, observe).run(without_time(images))


class _AnalogRun(fx.Interpreter):
    """Runs a spiking body as the ANN it came from: neurons are ReLUs, dropout does nothing."""

    def __init__(self, body: fx.GraphModule, observe: Callable[[str, Tensor], None]):
        super().__init__(body)
        self.observe = observe

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, SpikingNeuron):
            activation = functional.relu(args[0])
            self.observe(target, activation)
            return activation
        return args[0] if isinstance(module, TemporalModule) else super().call_module(target, args, kwargs)
