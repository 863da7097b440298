"""Threshold balancing: from calibration images to a threshold for every layer of neurons."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from hybridsnn.batch import time_average
from hybridsnn.conversion.activation_scales import ActivationScales, thresholds_for_activations
from hybridsnn.encoders import Encoder
from hybridsnn.kernels.neuron import Kernel, choose
from hybridsnn.neurons import SpikingNeuron
from hybridsnn.program.graph import Node, Program, Segment
from hybridsnn.program.operations import Role
from hybridsnn.program.passes import analogue
from hybridsnn.program.run import currents_of

FRAMES = 512  # how many frames a synapse sees at once while balancing; bounds the memory of the sweep
CURRENTS = 2**31  # bytes of a layer's currents that are kept from their maximum until they make spikes


@dataclass(frozen=True)
class Calibration:
    """What thresholds are measured on.

    Attributes:
        images: normalised training images `[N, C, H, W]`, or events `[N, T, C, H, W]`.
        indices: which they are, int64 `[N]`: their random spikes depend on it.
        encoder: of the spiking network.
        timesteps: how long the network is simulated, for balancers that simulate.
        seed: of random spikes.
        percentile: in (0, 100], for balancers that take one.
        advance: called with a layer's name when its threshold is known.
    """

    images: Tensor
    indices: Tensor
    encoder: Encoder
    timesteps: int
    seed: int = 0
    percentile: float = 99.9
    advance: Callable[[str], None] = lambda name: None

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and indices, `size` at a time."""
        yield from zip(self.images.split(size), self.indices.split(size), strict=True)


@dataclass(frozen=True)
class Balancer:
    """An entry of `BALANCERS`.

    Attributes:
        thresholds: (a spiking body of its own, calibration) to thresholds by the name of the neuron, scalar or
            `[channels]` as the neurons have them. The body has the ANN's weights and may be changed.
            None: nothing is measured and no weight rescaled; every threshold is a number that the user gives.
    """

    summary: str
    thresholds: Callable[[fx.GraphModule, Calibration], dict[str, Tensor]] | None


@torch.no_grad()
def maximum_current(body: fx.GraphModule, calibration: Calibration) -> dict[str, Tensor]:
    """`max`: the largest current that spike trains of the balanced layers before produce (hybrid paper, section 2.2).

    One sweep: a layer's currents depend on earlier layers only, whose spike trains are kept, one bit for each neuron
    and step. So each synapse is computed once for its maximum, and once more only for currents that did not fit in
    memory until the threshold was known. A true maximum over images and steps: the order of the images does not matter.
    """
    body.eval()
    program = Program(body)
    scales = ActivationScales(body, calibration.encoder.scale)
    segments = program.segments
    last_use = {source: neurons for neurons, segment in segments.items() for source in segment.sources}
    batches = list(calibration.batches(max(1, FRAMES // calibration.timesteps)))
    trains: dict[Node, list[_SpikeTrain]] = {}
    thresholds = {}

    for node in program.nodes:
        neuron = node.module
        if not isinstance(neuron, SpikingNeuron):
            scales.visit(node.source)
            continue
        segment = segments[node]

        def current_of(place: int, segment: Segment = segment) -> Tensor:
            images, indices = batches[place]
            return currents_of(
                program,
                segment,
                {
                    source: calibration.encoder(images, indices, calibration.timesteps, seed=calibration.seed)
                    if source.role is Role.INPUT
                    else trains[source][place].spikes()
                    for source in segment.sources
                },
            )

        peaks, kept, room = [], {}, CURRENTS if node in last_use else 0
        for place in range(len(batches)):
            current = current_of(place)
            peaks.append(_largest(current, per_channel=neuron.threshold.dim() == 1))
            size = current.untyped_storage().nbytes()
            if size <= room:
                kept[place] = current
                room -= size
        scales.set_threshold(node.source, torch.stack(peaks).amax(0))
        thresholds[node.name] = neuron.threshold.detach().clone()
        scales.visit(node.source)
        if node in last_use:
            trains[node] = [
                _SpikeTrain.of(neuron, kept.pop(place) if place in kept else current_of(place))
                for place in range(len(batches))
            ]
        for source in segment.sources:
            if last_use[source] is node:
                trains.pop(source, None)
        calibration.advance(node.name)
    return thresholds


def _largest(current: Tensor, per_channel: bool) -> Tensor:
    """The maximum of currents `[T, B, *N]`, or of each channel."""
    if not per_channel:
        return current.amax()
    return current.amax(dim=[axis for axis in range(current.dim()) if axis != 2])


@dataclass(frozen=True)
class _SpikeTrain:
    """Spikes `[T, B, *N]` of a layer, one bit each."""

    kernel: Kernel
    bits: Tensor
    steps: int
    dtype: torch.dtype

    @classmethod
    def of(cls, neuron: SpikingNeuron, current: Tensor) -> "_SpikeTrain":
        """What a layer makes of currents `[T, B, *N]`, whose memory it may use."""
        kernel = choose(neuron.kernel, current)
        state = neuron.initial_state(current)
        *_, bits, _ = kernel.forward(
            current,
            neuron.threshold.detach(),
            neuron.leak.detach(),
            *state,
            neuron.reset == "hard",
            pack=True,
            overwrite=True,
        )
        assert bits is not None
        return cls(kernel, bits, len(current), current.dtype)

    def spikes(self) -> Tensor:
        return self.kernel.unpack(self.bits, self.steps, self.dtype)


def _observe_activations(
    body: fx.GraphModule, calibration: Calibration, observe: Callable[[str, Tensor], None]
) -> None:
    """Call with the name and the activations `[B, *N]` of each layer, of the ANN that a body came from."""
    program = Program(body)

    def note(node: Node, value: Tensor) -> None:
        if node.role is Role.NEURON:
            observe(node.name, value)

    body.eval()
    for batch, _ in calibration.batches(FRAMES // 16):
        analogue(program, time_average(batch), note)


@torch.no_grad()
def percentile_of_activations(body: fx.GraphModule, calibration: Calibration) -> dict[str, Tensor]:
    """`percentile`: of the non-zero activations of the ANN (Rueckauer et al., 2017); nothing is simulated.

    The value that the given share of them does not exceed (nearest rank), exact: only the largest activations are
    kept, as many as can lie above it.
    """
    share = calibration.percentile / 100
    images = len(calibration.images)
    kept: dict[str, Tensor] = {}  # the largest activations, descending, [groups, k]
    positive: dict[str, Tensor] = {}  # how many are above 0, [groups]
    per_channel = {
        name: module.threshold.dim() == 1 for name, module in body.named_modules() if isinstance(module, SpikingNeuron)
    }

    def observe(name: str, activation: Tensor) -> None:
        rows = activation.transpose(0, 1).flatten(1) if per_channel[name] else activation.reshape(1, -1)
        limit = math.ceil((1 - share) * rows.shape[1] / len(activation) * images) + 1
        rows_so_far = torch.cat([kept[name], rows], 1) if name in kept else rows
        kept[name] = rows_so_far.topk(min(limit, rows_so_far.shape[1]), dim=1).values
        positive[name] = positive.get(name, 0) + (rows > 0).sum(1)

    _observe_activations(body, calibration, observe)
    activations = {}
    for name, largest in kept.items():
        count = positive[name]
        # Ascending rank ceil(share * count), counted from the largest; the tolerance keeps 0.999 * 1000 at 999.
        place = count - torch.ceil(share * count.double() - 1e-9).long()
        chosen = largest.gather(1, place.clamp(0, largest.shape[1] - 1).unsqueeze(1)).squeeze(1)
        activations[name] = chosen if per_channel[name] else chosen[0]
        calibration.advance(name)
    return thresholds_for_activations(body, activations, calibration.encoder.scale)


@torch.no_grad()
def maximum_activation(body: fx.GraphModule, calibration: Calibration) -> dict[str, Tensor]:
    """`activation-max`: the largest activation of the ANN (data-based normalisation, Diehl et al., 2015)."""
    neurons = {name: module for name, module in body.named_modules() if isinstance(module, SpikingNeuron)}
    activations: dict[str, Tensor] = {}

    def observe(name: str, activation: Tensor) -> None:
        peak = _largest(activation.unsqueeze(0), per_channel=neurons[name].threshold.dim() == 1)
        activations[name] = torch.maximum(activations[name], peak) if name in activations else peak

    _observe_activations(body, calibration, observe)
    for name in activations:
        calibration.advance(name)
    return thresholds_for_activations(body, activations, calibration.encoder.scale)


BALANCERS = {
    "max": Balancer(
        "the largest current that the spike trains before it produce, layer by layer (hybrid paper)",
        maximum_current,
    ),
    "activation-max": Balancer("the largest activation of the ANN; nothing is simulated", maximum_activation),
    "percentile": Balancer(
        "a percentile of the ANN's non-zero activations, robust to outliers", percentile_of_activations
    ),
    "constant": Balancer("the number given; nothing is measured: for training from scratch", None),
}
