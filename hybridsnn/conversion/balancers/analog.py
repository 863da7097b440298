"""The activations of the ANN that a spiking body came from."""

from collections.abc import Callable

from torch import Tensor, fx

from hybridsnn.batch import time_average
from hybridsnn.conversion.balancers.calibration import Calibration
from hybridsnn.encoders import ENCODERS
from hybridsnn.program.graph import Node, Program
from hybridsnn.program.operations import Role
from hybridsnn.program.passes import analogue

STEPS = 16  # an image counts as so many frames: all its activations are in memory at once


def observe_activations(body: fx.GraphModule, calibration: Calibration, observe: Callable[[str, Tensor], None]) -> None:
    """Run the ANN on the calibration images; `observe` gets the name of each layer and its activations `[B, *N]`."""
    program = Program(body.eval())

    def note(node: Node, value: Tensor) -> None:
        if node.role is Role.NEURON:
            observe(node.name, value)

    events = ENCODERS[calibration.encoder.name].events
    for images, _ in calibration.batches(STEPS):
        analogue(program, time_average(images) if events else images, note)
