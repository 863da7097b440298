"""The balancer of the hybrid paper: a layer's threshold is the largest current it gets from spikes."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, fx

from hybridsnn.conversion.activation_scales import ActivationScales
from hybridsnn.conversion.balancers.base import MeasuringBalancer, largest
from hybridsnn.conversion.balancers.calibration import Calibration
from hybridsnn.conversion.balancers.spike_trains import SpikeTrain
from hybridsnn.neurons import SpikingNeuron
from hybridsnn.program.graph import Node, Program, Segment
from hybridsnn.program.operations import Role
from hybridsnn.program.run import currents_of

CURRENTS = 2**31  # bytes of a layer's currents that are kept from their maximum until they make spikes


class MaximumCurrent(MeasuringBalancer):
    """The largest current that spike trains of the balanced layers before produce (hybrid paper, section 2.2).

    One sweep: a layer's currents depend on earlier layers only, whose spike trains are kept, one bit for each neuron
    and step. So each synapse is computed once for its maximum, and once more only for currents that did not fit in
    memory until the threshold was known. A true maximum over images and steps: the order of the images does not matter.
    """

    summary: ClassVar[str] = (
        "the largest current that the spike trains before it produce, layer by layer (hybrid paper)"
    )

    calibration_timesteps: int = Field(
        100, gt=0, description="Number of time steps to simulate while measuring; event data may have fewer."
    )

    @torch.no_grad()
    def measure(self, body: fx.GraphModule, calibration: Calibration) -> dict[str, Tensor]:
        body.eval()
        timesteps = calibration.timesteps(self.calibration_timesteps)
        program = Program(body)
        scales = ActivationScales(body, calibration.encoder.scale)
        segments = program.segments
        last_use = {source: neurons for neurons, segment in segments.items() for source in segment.sources}
        batches = list(calibration.batches(timesteps))
        trains: dict[Node, list[SpikeTrain]] = {}
        thresholds = {}

        for node in program.nodes:
            neuron = node.module
            if not isinstance(neuron, SpikingNeuron):
                scales.visit(node.source)
                continue
            segment = segments[node]

            def current_of(place: int, segment: Segment = segment) -> Tensor:
                images, indices = batches[place]
                spikes = {
                    source: calibration.encoder(images, indices, timesteps, seed=calibration.seed)
                    if source.role is Role.INPUT
                    else trains[source][place].spikes()
                    for source in segment.sources
                }
                return currents_of(program, segment, spikes)

            peaks, kept, room = [], {}, CURRENTS if node in last_use else 0
            for place in range(len(batches)):
                current = current_of(place)
                peaks.append(largest(current, per_channel=neuron.threshold.dim() == 1))
                size = current.untyped_storage().nbytes()
                if size <= room:
                    kept[place] = current
                    room -= size
            scales.set_threshold(node.source, torch.stack(peaks).amax(0))
            thresholds[node.name] = neuron.threshold.detach().clone()
            scales.visit(node.source)
            if node in last_use:
                trains[node] = [
                    SpikeTrain.of(neuron, kept.pop(place) if place in kept else current_of(place))
                    for place in range(len(batches))
                ]
            for source in segment.sources:
                if last_use[source] is node:
                    trains.pop(source, None)
            calibration.advance(node.name)
        return thresholds
