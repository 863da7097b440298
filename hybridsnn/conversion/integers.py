"""A spiking network of integers: weights of a few bits, thresholds on the same grid, membranes without rounding.

A layer of neurons keeps its spikes if its currents, threshold and membranes are multiplied by one number. So a layer
with threshold θ gets an integer threshold k, and its weights and biases are multiplied by k/θ and rounded; the number
may be another one for each channel. An average pool becomes a sum, and its division goes into the weights behind it.
What is rounded is weights, biases and the image; the initial potential f·θ becomes floor(f·k).

Such a network has a margin: with floor(f·k) + 1/2 in the place of floor(f·k) it fires the same spikes, and no membrane
ever comes nearer to its threshold than 1/2, so that neither rounding below 1/2 nor `>` in the place of `>=` changes a
spike. As integers the half is left out: n + 1/2 >= k exactly when n >= k.
"""

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from hybridsnn.conversion.preparation import add_module
from hybridsnn.encoders import ENCODERS
from hybridsnn.errors import ConversionError
from hybridsnn.model import IntegerModel, SpikingModel
from hybridsnn.neurons import IntegerNeuron, SpikingNeuron
from hybridsnn.program.graph import Node, Program
from hybridsnn.program.operations import SYNAPSES, Role, Weighting
from hybridsnn.program.passes import shapes
from hybridsnn.program.summation import sum_pool

GRIDS = {
    "layer": "one integer threshold per layer",
    "channel": "one integer threshold per channel, so that each channel uses all bits",
}
PIXELS = 127  # the largest integer of an image
LARGEST_THRESHOLD = 2**20  # weights so small that they would need more count as 0 all but


def integer_model(
    model: SpikingModel, sample: tuple[int, ...], *, bits: int = 8, grid: str = "channel", largest_pixel: float = 1.0
) -> IntegerModel:
    """A network of integers with nearly the spikes of a network of floats.

    Args:
        sample: the shape of a frame of one image.
        bits: of weights, 2 to 8; biases and sums have more.
        grid: one of `GRIDS`.
        largest_pixel: the largest absolute value of a normalised pixel, which becomes 127.

    Raises:
        ConversionError: if something in the network has no integer counterpart, all of that in one line.
    """
    body = copy.deepcopy(model.body)
    program = Program(body)
    known = shapes(program, sample)
    encoder, unit, coding = model.encoder, 1.0, ENCODERS[model.encoder.name]
    if not coding.random:  # events are counts, which are integers as they are
        unit = 1.0 if coding.events else largest_pixel / PIXELS / encoder.scale
        encoder = replace(encoder, scale=encoder.scale * unit, whole=True)
    ends = [_End(node, known) for node in program.nodes if node.ends_path]
    problems = [problem for end in ends for problem in end.problems]
    if model.readout_leak != 1:
        problems.append("its readout leaks")
    if problems:
        raise ConversionError(f"integers: not possible, because {'; '.join(dict.fromkeys(problems))}")
    made = IntegerModel(body, encoder)
    made.bits = bits
    for end in ends:
        scale = end.quantise(body, 2 ** (bits - 1) - 1, grid, unit)
        if end.node.role is Role.OUTPUT:
            made.readout_scale = 1 / float(scale[0])
    for node in program.nodes:
        if node.role is Role.POOL:
            _sum_instead(body, node, known)
    body.graph.lint()
    body.recompile()
    return made.eval()


@dataclass
class _Branch:
    """One summand of a current.

    Attributes:
        carrier: its synapse or weighting, None where spikes come without one.
        user, value: where a weighting has to be put in: `user` reads `value`.
        weight_factor: what weights have to be multiplied by, since pools before and behind them become sums.
        bias_factor: the same for biases, for the pools behind.
        reads_input: whether it carries the image.
    """

    carrier: Node | None
    user: Node
    value: Node
    weight_factor: float
    bias_factor: float
    reads_input: bool


class _End:
    """A layer of neurons or the readout, with the summands of its current; and why they cannot be integers."""

    def __init__(self, node: Node, known: dict[Node, tuple[int, ...]]):
        self.node, self.known = node, known
        self.channels = known[node.inputs[0]][0]
        self.branches: list[_Branch] = []
        self.problems: list[str] = []
        self._walk(node, node.inputs[0], 1.0)
        if isinstance(node.module, SpikingNeuron) and bool((node.module.leak != 1).any()):
            self.problems.append(f"the neurons of '{node.name}' leak")

    def _walk(self, user: Node, value: Node, factor: float) -> None:
        """Follow a current upwards; `factor` is that of the pools passed so far."""
        if value.role in (Role.SUM, Role.DROPOUT):
            for part in value.inputs:
                self._walk(value, part, factor)
        elif value.role in (Role.SYNAPSE, Role.WEIGHTING):
            if value.role is Role.SYNAPSE and not isinstance(value.module, SYNAPSES):
                self.problems.append(f"'{value.name}' is a {type(value.module).__name__}")
            before, reads_input = self._source(value.inputs[0])
            self.branches.append(_Branch(value, user, value, factor * before, factor, reads_input))
        elif self._carries_spikes(value):
            before, reads_input = self._source(value)
            self.branches.append(_Branch(None, user, value, factor * before, factor, reads_input))
        elif value.role is Role.POOL:
            self._walk(value, value.inputs[0], factor / self._window(value))
        elif value.role is Role.SHAPE and self.node.role is Role.OUTPUT:
            self._walk(value, value.inputs[0], factor)
        else:
            self.problems.append(f"'{value.name}' ({value.role.value}) stands between a synapse and neurons")

    def _carries_spikes(self, value: Node) -> bool:
        while value.role in (Role.POOL, Role.SHAPE, Role.DROPOUT):
            value = value.inputs[0]
        return value.role in (Role.NEURON, Role.INPUT)

    def _source(self, value: Node) -> tuple[float, bool]:
        """The factor of the pools between spikes and a synapse; and whether they are the image instead."""
        if value.role in (Role.NEURON, Role.INPUT):
            return 1.0, value.role is Role.INPUT
        if value.role in (Role.POOL, Role.SHAPE, Role.DROPOUT):
            factor, reads_input = self._source(value.inputs[0])
            return factor / (self._window(value) if value.role is Role.POOL else 1), reads_input
        if value.role is Role.SUM and len(parts := {self._source(part) for part in value.inputs}) == 1:
            return parts.pop()
        self.problems.append(f"'{value.name}' ({value.role.value}) stands before a synapse, with no neurons between")
        return 1.0, False

    def _window(self, pool: Node) -> int:
        found = sum_pool(pool, self.known[pool.inputs[0]], self.known[pool])
        if found is None:
            self.problems.append(f"the pool '{pool.name}' has windows of different sizes, or is not of images")
            return 1
        return found.window

    @torch.no_grad()
    def quantise(self, body: fx.GraphModule, largest: int, grid: str, unit: float) -> Tensor:
        """Round the weights that lead here, in place; returns the scale of each channel, `[channels]`.

        Args:
            largest: the largest weight.
            unit: what 1 of an integer image stands for.
        """
        neuron = self.node.module if isinstance(self.node.module, SpikingNeuron) else None
        modules = [self._weighted(body, branch) for branch in self.branches]
        weights, extents = [], torch.full((self.channels,), 1e-30, dtype=torch.float64)
        for branch, module in zip(self.branches, modules, strict=True):
            factor = branch.weight_factor * (unit if branch.reads_input else 1.0)
            weight = module.get_parameter("weight").detach().double().cpu() * factor
            weights.append(weight)
            rows = weight.flatten(1).abs().amax(1)
            extents = torch.maximum(extents, rows if len(rows) == self.channels else rows.max().expand(self.channels))
        if neuron is None:
            scale = (largest / extents.max()).expand(self.channels)
        else:
            threshold = neuron.threshold.detach().double().cpu()
            reference = threshold.flatten(1).amax(1) if threshold.dim() > 1 else threshold.expand(self.channels)
            integer = (largest * reference / extents).clamp(1, LARGEST_THRESHOLD).floor()
            if grid == "layer":
                integer = integer.min().expand(self.channels)
            scale = integer / reference
            self._exchange(body, neuron, threshold, scale, integer[0] if grid == "layer" else integer)
        for branch, module, weight in zip(self.branches, modules, weights, strict=True):
            rows = scale if len(weight) == self.channels else scale[:1]
            scaled = weight * rows.view(-1, *[1] * (weight.dim() - 1))
            module.get_parameter("weight").copy_(scaled.round().clamp(-largest, largest))
            bias = getattr(module, "bias", None)
            if isinstance(bias, Tensor):
                bias.copy_((bias.double().cpu() * branch.bias_factor * rows).round())
        return scale

    def _weighted(self, body: fx.GraphModule, branch: _Branch) -> nn.Module:
        """The module that has a branch's weights; spikes that have none get a weighting, with one for each channel."""
        carrier = None if branch.carrier is None else branch.carrier.module
        if carrier is not None and not isinstance(carrier, Weighting):
            return carrier
        shape = self.known[branch.value]
        module = Weighting((shape[0], *[1] * (len(shape) - 1)))
        if carrier is not None:
            assert branch.carrier is not None
            module.weight.data.copy_(carrier.weight.expand_as(module.weight))
            body.set_submodule(branch.carrier.name, module)
            return module
        name = add_module(body, f"{self.node.name.replace('.', '_')}_weighting", module)
        reader = branch.user.source
        with body.graph.inserting_before(reader):
            weighting = body.graph.call_module(name, (branch.value.source,))
        reader.replace_input_with(branch.value.source, weighting)
        return module

    def _exchange(
        self, body: fx.GraphModule, neuron: SpikingNeuron, threshold: Tensor, scale: Tensor, integer: Tensor
    ) -> None:
        """Put integer neurons in the place of the others."""
        if threshold.dim() > 1:  # one for each neuron
            integer = (threshold * scale.view(-1, *[1] * (threshold.dim() - 1))).round().clamp(min=1)
        fraction = neuron.initial_potential
        if isinstance(fraction, Tensor):
            fraction = fraction.detach().double().cpu()
            if fraction.dim() > 1 and integer.dim() == 1:
                integer_along = integer.view(-1, *[1] * (fraction.dim() - 1))
            elif integer.dim() > 1 and fraction.dim() == 1:
                integer_along, fraction = integer, fraction.view(-1, *[1] * (integer.dim() - 1))
            else:
                integer_along = integer
            start = (fraction * integer_along).floor()
        else:
            start = (fraction * integer).floor()
        body.set_submodule(self.node.name, IntegerNeuron(integer, start, reset=neuron.reset))


def _sum_instead(body: fx.GraphModule, pool: Node, known: dict[Node, tuple[int, ...]]) -> None:
    """Put a sum in the place of an average pool."""
    made = sum_pool(pool, known[pool.inputs[0]], known[pool])
    assert made is not None  # or it would have been refused
    node = pool.source
    with body.graph.inserting_after(node):
        summed = body.graph.call_module(add_module(body, f"{node.name}_sum", made.module), (pool.inputs[0].source,))
    if made.flat:
        with body.graph.inserting_after(summed):
            summed = body.graph.call_method("flatten", (summed, 1))
    node.replace_all_uses_with(summed)
    body.graph.erase_node(node)
