"""One sweep over the layers of a spiking network, in which each is balanced, and corrected, before the next."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from hybridsnn.batch import time_average
from hybridsnn.conversion.activation_scales import ActivationScales
from hybridsnn.conversion.balancers.calibration import Calibration
from hybridsnn.conversion.balancers.spike_trains import SpikeTrain
from hybridsnn.conversion.corrections.base import Correction
from hybridsnn.conversion.replacement import bias_synapse
from hybridsnn.encoders import ENCODERS
from hybridsnn.kernels.neuron import choose
from hybridsnn.neurons import SpikingNeuron, along_channels
from hybridsnn.program.graph import Node, Program, Segment
from hybridsnn.program.operations import Role
from hybridsnn.program.run import currents_of

CURRENTS = 2**31  # bytes of a layer's currents that are kept from one use to the next
SAMPLES = 2**13  # so many neurons of a channel, over all images, serve to search for what its neurons share


@dataclass(eq=False, kw_only=True)
class Readout:
    """What the sweep has come to, the readout or a layer of neurons: all before it spike as they will in the end.

    Attributes:
        name: of the neurons; "readout".
        timesteps: number of simulated time steps T.
        synapse: the one to whose bias a current of each channel can be added, None if there is none.
        targets: the outputs of the ANN, or the activations of the layer, `[B, *N]`, batch by batch, in the unit of the
            current: one spike at each step stands for the threshold. Empty where the sweep was not asked for them.
        indices: int64 `[N]`, of the calibration images, in the order of the batches.
        seed: of random choices.
    """

    name: str
    timesteps: int
    synapse: nn.Module | None
    targets: list[Tensor]
    indices: Tensor
    seed: int
    _current_of: Callable[[int], Tensor]
    _input_of: Callable[[int], Tensor]
    _batches: int
    _room: int = 0
    _kept: dict[int, Tensor] = field(default_factory=dict)

    def currents(self) -> Iterator[Tensor]:
        """The currents `[T, B, *N]`, batch by batch; they are computed again if they did not fit in memory."""
        for place in range(self._batches):
            yield self._current(place)

    def inputs(self) -> Iterator[Tensor]:
        """What the synapse gets, the mean over time `[B, ...]`, batch by batch."""
        for place in range(self._batches):
            yield self._input_of(place)

    def forget(self) -> None:
        """Compute the currents anew when they are needed again, because the synapse has changed."""
        self._kept.clear()

    def _current(self, place: int) -> Tensor:
        if place in self._kept:
            return self._kept[place]
        current = self._current_of(place)
        size = current.untyped_storage().nbytes()
        if size <= self._room - sum(kept.untyped_storage().nbytes() for kept in self._kept.values()):
            self._kept[place] = current
        return current


@dataclass(eq=False, kw_only=True)
class Layer(Readout):
    """A layer of neurons that the sweep has come to.

    Attributes:
        neuron: their module.
        threshold: as it is so far, a scalar or `[channels]`.
        per_channel: whether each channel has a threshold of its own.
    """

    neuron: SpikingNeuron
    threshold: Tensor
    per_channel: bool
    _sampled: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def sampled(self) -> list[tuple[Tensor, Tensor]]:
        """Currents `[T, B, channels, *M]` and activations `[B, channels, *M]` of neurons on a regular grid.

        It is the coarsest that leaves `SAMPLES` neurons of each channel over all images; where there are no more,
        these are all.
        """
        if not self._sampled:
            room, step = self.targets[0].shape[2:], 1
            images = sum(map(len, self.targets))
            while images * math.prod(size // (step + 1) for size in room) >= SAMPLES and room:
                step += 1
            grid = (slice(None), slice(None), *[slice(step // 2, None, step)] * len(room))
            self._sampled = [
                (current[:, *grid].clone() if step > 1 else current, target[grid])
                for current, target in zip(self.currents(), self.targets, strict=True)
            ]
        return self._sampled

    def forget(self) -> None:
        super().forget()
        self._sampled.clear()

    def counts(self, current: Tensor, threshold: Tensor | None = None, potential: Tensor | None = None) -> Tensor:
        """How many spikes `[B, *N]` the neurons send at currents `[T, B, *N]`.

        Args:
            threshold: a scalar or `[channels]`, in the place of the neurons' own.
            potential: is added to the initial membrane potential, broadcast to `[B, *N]`.
        """
        neuron = self.neuron
        if threshold is None:
            threshold = self.threshold
        membrane, since = neuron.initial_state(current, threshold=threshold)
        if potential is not None:
            membrane = membrane + potential.to(membrane)
        spikes = choose(neuron.kernel, current).forward(
            current, threshold.to(neuron.threshold), neuron.leak.detach(), membrane, since, neuron.reset == "hard"
        )[0]
        return spikes.sum(0)

    def error(self, current: Tensor, target: Tensor, potential: Tensor | None = None) -> Tensor:
        """By how much `threshold * n / T` is below the activations of the ANN, `[B, *N]`; arguments as of `counts`."""
        counts = self.counts(current, potential=potential)
        return target - counts * (along_channels(self.threshold, target).to(target) / self.timesteps)

    def squared_error(self) -> Tensor:
        """The sum of the squares of these errors over all images and neurons, float64."""
        pairs = zip(self.currents(), self.targets, strict=True)
        return torch.stack([self.error(current, target).double().square().sum() for current, target in pairs]).sum()

    def trains(self) -> list[SpikeTrain]:
        """What the neurons send, batch by batch; uses up what was kept of the currents."""
        self._sampled.clear()
        return [
            SpikeTrain.of(self.neuron, self._kept.pop(place) if place in self._kept else self._current_of(place))
            for place in range(self._batches)
        ]


@torch.no_grad()
def sweep(
    body: fx.GraphModule,
    calibration: Calibration,
    threshold_of: Callable[[Layer], Tensor],
    *,
    timesteps: int,
    corrections: Sequence[Correction] = (),
    compares: bool = False,
) -> dict[str, Tensor]:
    """Give each layer of neurons its threshold, and rescale and correct the network as it goes.

    A layer's currents depend on earlier layers only, whose spike trains are kept, one bit for each neuron and step. So
    each synapse is computed once, and once more only for currents that did not fit in memory until they made spikes.

    Args:
        body: a spiking body with the ANN's weights; is changed in place.
        threshold_of: the threshold of a layer, a scalar or `[channels]`.
        timesteps: number of time steps to simulate; event data may have fewer.
        corrections: applied in this order to each layer when it has its threshold.
        compares: whether `threshold_of` needs the activations of the ANN; corrections always do.

    Returns:
        the thresholds by the name of the neuron.
    """
    body.eval()
    timesteps = calibration.available(timesteps)
    batches = list(calibration.batches(timesteps))
    original = _Activations(body, calibration, batches, timesteps) if compares or corrections else None
    program, scales = Program(body), ActivationScales(body, calibration.encoder.scale)
    ends = (*program.neurons, program.output) if corrections else program.neurons
    segments = {end: Segment.of(program.nodes, end) for end in ends}
    last_use = {source: end for end, segment in segments.items() for source in segment.sources}
    trains: dict[Node, list[SpikeTrain]] = {}
    thresholds = {}

    def spikes_of(sources: Sequence[Node], place: int) -> dict[Node, Tensor]:
        images, indices = batches[place]
        return {
            source: calibration.encoder(images, indices, timesteps, seed=calibration.seed)
            if source.role is Role.INPUT
            else trains[source][place].spikes()
            for source in sources
        }

    def seen(node: Node) -> dict[str, Any]:
        """What is known of a layer of neurons, or of the readout, before it is balanced."""
        segment, synapse = segments[node], bias_synapse(body, node.source)
        reader = next((each for each in segment.nodes if synapse is not None and each.module is synapse), node)
        into = Segment.of(program.nodes, reader)

        def input_of(place: int) -> Tensor:
            spikes = spikes_of(into.sources, place)
            return currents_of(program, into, {source: train.mean(0, True) for source, train in spikes.items()})[0]

        return {
            "timesteps": timesteps,
            "synapse": synapse,
            "targets": original.of(node.name, scales.current_scale(node.source)) if original else [],
            "indices": calibration.indices,
            "seed": calibration.seed,
            "_current_of": lambda place: currents_of(program, segment, spikes_of(segment.sources, place)),
            "_input_of": input_of,
            "_batches": len(batches),
        }

    for node in program.nodes:
        neuron = node.module
        if not isinstance(neuron, SpikingNeuron):
            scales.visit(node.source)
            continue
        layer = Layer(
            name=node.name,
            neuron=neuron,
            threshold=torch.ones_like(neuron.threshold),
            per_channel=body.meta["granularity"] == "channel",
            _room=CURRENTS if node in last_use or corrections else 0,
            **seen(node),
        )
        for correction in corrections:
            correction.prepare(layer)
        scales.set_threshold(node.source, threshold_of(layer))
        layer.threshold = thresholds[node.name] = scales.thresholds[node.source].clone()
        for correction in corrections:
            correction.correct(layer)
        scales.visit(node.source)
        if node in last_use:
            trains[node] = layer.trains()
        for source in segments[node].sources:
            if last_use[source] is node:
                trains.pop(source, None)
        calibration.advance(node.name)
    if corrections:
        readout = Readout(name="readout", **seen(program.output))
        for correction in corrections:
            correction.correct_readout(readout)
    return thresholds


class _Activations:
    """The activations of the ANN, layer by layer; those are kept that later layers are computed from."""

    def __init__(
        self, body: fx.GraphModule, calibration: Calibration, batches: Sequence[tuple[Tensor, Tensor]], timesteps: int
    ):
        self.program = program = Program(copy.deepcopy(body))
        events = ENCODERS[calibration.encoder.name].events
        inputs = [time_average(images[:, :timesteps] if events else images).unsqueeze(0) for images, _ in batches]
        self.values = dict.fromkeys(program.inputs, inputs)  # [1, B, *N] of each batch
        self.segments = {end.name: (end, Segment.of(program.nodes, end)) for end in (*program.neurons, program.output)}
        self.last_use = {source: end for end, segment in self.segments.values() for source in segment.sources}

    def of(self, name: str, scale: Tensor) -> list[Tensor]:
        """The activations of the layer of this name, or the outputs, in units of `scale`."""
        node, segment = self.segments[name]
        found = [
            currents_of(self.program, segment, {s: self.values[s][batch] for s in segment.sources})
            for batch in range(len(self.values[segment.sources[0]]))
        ]
        if isinstance(neuron := node.module, SpikingNeuron):
            found = [neuron.analogue(current) for current in found]
        if node in self.last_use:
            self.values[node] = found
        for source in segment.sources:
            if self.last_use[source] is node and source.role is not Role.INPUT:
                del self.values[source]
        return [value[0] / along_channels(scale, value[0]).to(value) for value in found]
