"""Counts what a spiking network computes: the operations of every synapse, from the spikes themselves.

A spike costs one accumulate for each connection that it travels on, a connection being a weight that is not 0 and that
meets the spike within the borders of the layer. Strides, paddings, groups and dilations are exact: the connections of
every neuron are found once, as the gradient of the summed output of a layer whose weights are 1, and are multiplied
with the maps of spikes.

Scales that are folded into weights cost nothing: a spike through an average pool or a weighting still is a spike, which
the synapse behind carries with another weight. k spikes in a window of a pool are k accumulates on each connection of
that window, not one multiplication by k/4. Where spikes reach neurons without a synapse, on a shortcut, each is one
accumulate.

A frame that holds only -1, 0 and 1 is spikes; others are multiplied, value by value where it is not 0. With direct
coding the image is multiplied, once for all steps, since the current that follows from it is constant. A synapse behind
another one, with no neurons between, multiplies all its inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hybridsnn.encoders import ENCODERS
from hybridsnn.evaluation.energy import Counts, energy_rows
from hybridsnn.model import SpikingModel
from hybridsnn.neurons import SpikingNeuron
from hybridsnn.program.graph import Node, Program, attribute
from hybridsnn.program.operations import Role
from hybridsnn.program.passes import shapes
from hybridsnn.program.summation import summed

PASSING = (Role.POOL, Role.SUM, Role.SHAPE, Role.DROPOUT, Role.WEIGHTING, Role.QUESTION)
SHORTCUT = " (shortcut)"


@dataclass(frozen=True)
class Connections:
    """What carries spikes: a synapse, or a shortcut to a layer of neurons that has no synapse.

    Attributes:
        name: of the synapse, or of the neurons with `SHORTCUT`.
        fan_out: for each layer of neurons, or input, whose spikes it carries: the connections of each of its values,
            float64 `[*N]`. Empty where it carries what another synapse made.
        dense: all its connections, which is what the ANN multiplies; 0 for a shortcut.
        first: whether it carries the input.
        static: whether what it carries is the same at every step.
    """

    name: str
    fan_out: dict[Node, Tensor]
    dense: float
    first: bool
    static: bool


def connections(program: Program, sample: tuple[int, ...], *, static_input: bool) -> list[Connections]:
    """All of a network, in the order in which they run.

    Args:
        sample: the shape of a frame of one image.
        static_input: whether the frames are the same at every step.
    """
    known = shapes(program, sample)
    static = program.static(program.inputs if static_input else ())
    found = []
    for node in program.nodes:
        path, sources = _path(program, node)
        spiking = [source for source in sources if source.role in (Role.INPUT, Role.NEURON)]
        if node.role is Role.SYNAPSE:
            whole = len(spiking) == len(sources)
            fan_out = _fan_out(program, path, sources, node, known) if whole else {}
            dense = float(_fan_out(program, [], node.inputs, node, known)[node.inputs[0]].sum())
        elif node.role in (Role.NEURON, Role.OUTPUT) and spiking:
            fan_out, dense = _fan_out(program, path, spiking, node, known), 0.0
        else:
            continue
        first = any(source.role is Role.INPUT for source in spiking)
        name = node.name if dense else node.name + SHORTCUT
        found.append(Connections(name, fan_out, dense, first, bool(sources) and static.issuperset(sources)))
    return found


def _path(program: Program, target: Node) -> tuple[list[Node], list[Node]]:
    """What a node's inputs pass through on their way, and where they come from; each in order."""
    seen: set[Node] = set()
    pending = list(target.inputs)
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending += node.inputs if node.role in PASSING else ()
    ordered = [node for node in program.nodes if node in seen]
    return [node for node in ordered if node.role in PASSING], [node for node in ordered if node.role not in PASSING]


def _fan_out(
    program: Program, path: Sequence[Node], sources: Sequence[Node], target: Node, known: dict[Node, tuple[int, ...]]
) -> dict[Node, Tensor]:
    """For each source the connections of each of its values to what the target makes."""
    values: dict[Node, Any] = {}

    def value_of(node: Node) -> Any:
        if node.role is Role.ATTRIBUTE:
            return attribute(program.body, node.name).detach().cpu()
        return values.setdefault(node, torch.zeros(1, *known[node]))  # another summand, which does not count here

    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        for source in sources:
            values[source] = torch.zeros(1, *known[source], requires_grad=True)
        for node in (*path, target):
            values[node] = _counted(node, *node.arguments(value_of))
        reached = [values[source] for source in sources]
        found = torch.autograd.grad(values[target].sum(), reached, materialize_grads=True)
    return {source: gradient[0].round().double() for source, gradient in zip(sources, found, strict=True)}


def _counted(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A node as it counts: weights that are not 0 are 1, pools are sums; biases, weightings, dropouts count nothing."""
    if node.role in (Role.NEURON, Role.OUTPUT, Role.DROPOUT, Role.WEIGHTING):
        return args[0]
    if node.role is Role.POOL:
        return summed(node, args, kwargs)
    if node.role is not Role.SYNAPSE:
        return node.call(args, kwargs)
    assert node.module is not None
    ones = {
        name: torch.zeros(tensor.shape) if name == "bias" else (tensor.detach().cpu() != 0).float()
        for name, tensor in node.module.named_parameters()
    }
    return torch.func.functional_call(node.module, ones, args, kwargs)


@dataclass
class OperationCounter:
    """Counts during an evaluation, batch by batch.

    Args:
        model: what runs.
        timesteps: T.
    """

    model: SpikingModel
    timesteps: int
    sample: tuple[int, ...] = ()
    found: list[Connections] = field(default_factory=list)
    sums: dict[str, Tensor] = field(default_factory=dict)

    def begin(self, sample: tuple[int, ...]) -> None:
        """Called before each batch, with the shape of a frame of one image; sets all sums to 0."""
        if sample != self.sample:
            coding = ENCODERS[self.model.encoder.name]
            static = not (coding.random or coding.events)
            self.sample, self.found = sample, connections(self.model.program, sample, static_input=static)
        shapes_of = {
            "accumulates": (self.timesteps, len(self.found)),
            "multiplications": (self.timesteps, len(self.found)),
            "spikes-by-step": (self.timesteps,),
        }
        self.sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes_of.items()}
        self.sums["sample"] = torch.tensor(sample)

    def frames(self, frames: Tensor, start: int) -> None:
        """Count what frames `[T, B, ...]` cost, which are those from step `start` on."""
        for place, part in enumerate(self.found):
            if part.fan_out and not part.first:
                continue
            steps = len(frames) if not part.static else int(start == 0)
            window = slice(start, start + steps)
            if not part.fan_out:
                self.sums["multiplications"][window, place] += part.dense * frames.shape[1]
                continue
            fan_out = next(count for node, count in part.fan_out.items() if node.role is Role.INPUT)
            values = frames[:steps].flatten(2)
            present = values != 0
            spikes = (~present | (values.abs() == 1)).all(2, keepdim=True)
            if part.static:
                spikes = torch.zeros_like(spikes)  # an image is no spike, whatever it shows
            self.sums["accumulates"][window, place] += _carried((present & spikes).sum(1), fan_out)
            self.sums["multiplications"][window, place] += _carried((present & ~spikes).sum(1), fan_out)

    def fired(self, name: str, spikes: Tensor, start: int) -> None:
        """Count what the spikes `[T, B, *N]` of a layer of neurons cost, from step `start` on."""
        window = slice(start, start + len(spikes))
        maps = spikes.sum(1, dtype=torch.float32)  # whole numbers up to the size of the batch: exact
        self.sums["spikes-by-step"][window] += maps.flatten(1).sum(1, dtype=torch.float64).cpu()
        for place, part in enumerate(self.found):
            for node, fan_out in part.fan_out.items():
                if node.name == name and node.role is Role.NEURON:
                    self.sums["accumulates"][window, place] += _carried(maps, fan_out)

    def rows(self, measured: dict[str, Tensor], images: int) -> list[dict[str, Any]]:
        """Rows of metrics, per image: of each connection over all steps, and of the network up to each step.

        Args:
            measured: the sums of all batches, stacked.
        """
        self.begin(tuple(measured["sample"][0].tolist()))
        names = ("accumulates", "multiplications", "spikes-by-step")
        accumulates, multiplications, spikes = (measured[name].sum(0).cumsum(0) / images for name in names)
        rows: list[dict[str, Any]] = []
        for place, part in enumerate(self.found):
            values = {
                "accumulates-per-image": float(accumulates[-1, place]),
                "multiplications-per-image": float(multiplications[-1, place]),
                "ann-multiplications-per-image": part.dense,
            }
            rows += [{"layer": part.name, "metric": name, "value": value} for name, value in values.items()]
        neurons, constants, leaks = self._updates()
        dense = [part.dense for part in self.found]
        for step in range(self.timesteps):
            counts = Counts(
                timesteps=step + 1,
                accumulates=float(accumulates[step].sum()),
                multiplications=float(multiplications[step].sum()),
                spikes=float(spikes[step]),
                updates=float(neurons * (step + 1)),
                constants=float(constants * (step + 1)),
                leaks=float(leaks * (step + 1)),
                ann_multiplications=sum(dense),
                first_multiplications=sum(part.dense for part in self.found if part.first),
                ann_values=float(neurons),
            )
            rows += energy_rows(counts, counts.spikes / counts.updates)
        rows.append({"metric": "ann-multiplications-per-image", "value": sum(dense)})
        return rows

    def _updates(self) -> tuple[int, int, int]:
        """Neurons: all, those with a bias or a constant current, those with a leak."""
        program = self.model.program
        known, coding = shapes(program, self.sample), ENCODERS[self.model.encoder.name]
        static = program.static(program.inputs if not (coding.random or coding.events) else ())
        neurons = constants = leaks = 0
        for node, segment in program.segments.items():
            size = torch.Size(known[node]).numel()
            between = [part for part in segment.nodes if part.role in (Role.SYNAPSE, Role.NORM)]
            constant = any(getattr(part.module, "bias", None) is not None or part in static for part in between)
            assert isinstance(node.module, SpikingNeuron)
            neurons += size
            constants += size * constant
            leaks += size * bool((node.module.leak != 1).any())
        return neurons, constants, leaks


def _carried(maps: Tensor, fan_out: Tensor) -> Tensor:
    """Operations at each step, `[T]`, for the spikes `[T, *N]` of all images together."""
    weights = fan_out.to(maps.device).flatten()
    return (maps.flatten(1).double() @ weights).cpu()
