"""The activation scale of each node, and the weights that follow from it.

The activation scale of a value is the activation of the ANN that a 1 in the spiking network stands for. That of the
spikes of a layer is its threshold times that of its current. Weights are copied unless they must change: a bias is
divided by the scale of its layer, a vector of scales (one per channel) is folded into the weights that follow, and
where two branches meet in a sum the later one takes over the scale of the other.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from hybridsnn.conversion.replacement import alignments, summands
from hybridsnn.errors import ConversionError
from hybridsnn.neurons import SpikingNeuron
from hybridsnn.program.operations import Role, Weighting, module_of, role_of


class ActivationScales:
    """Visits a spiking body in order, and rescales its synapses as the thresholds before them become known.

    `visit` is called on every node in graph order; for a neuron, after `set_threshold`.

    Args:
        body: is changed in place; its weights are still those of the prepared ANN.
        input_scale: the activation scale of the input, which is the encoder's.
    """

    def __init__(self, body: fx.GraphModule, input_scale: float = 1.0):
        self.body = body
        self.input_scale = input_scale
        self.alignments = alignments(body)
        self.of: dict[fx.Node, Tensor] = {}  # scalar, or [channels]
        self.thresholds: dict[fx.Node, Tensor] = {}  # likewise

    def current_scale(self, neuron: fx.Node) -> Tensor:
        """The activation scale of the current into a neuron, a scalar or `[channels]`."""
        return self.of[neuron.all_input_nodes[0]]

    def set_threshold(self, neuron: fx.Node, threshold: Tensor) -> None:
        """Give a neuron its threshold, a scalar or `[channels]`; a layer that never fires in the ANN keeps 1.

        A layer with a threshold for each neuron gets the same one for all.
        """
        parameter = self.body.get_submodule(str(neuron.target)).get_parameter("threshold")
        self.thresholds[neuron] = torch.where(threshold > 0, threshold, torch.ones_like(threshold)).to(parameter)
        with torch.no_grad():
            parameter.copy_(self.thresholds[neuron])

    @torch.no_grad()
    def visit(self, node: fx.Node) -> None:
        """Find the activation scale of a node's value, and rescale its weights if it has any."""
        module, role = module_of(self.body, node), role_of(self.body, node)
        if role is Role.INPUT:
            # In double precision, so that scales stay true through a deep network.
            device = next(self.body.parameters()).device
            self.of[node] = torch.tensor(self.input_scale, dtype=torch.float64, device=device)
            return
        if node.op == "output" or not node.all_input_nodes:
            return
        incoming = self.of[node.all_input_nodes[0]]
        if role is Role.NEURON:
            self.of[node] = incoming * self.thresholds[node].to(incoming)
        elif module is not None and role is Role.SYNAPSE:
            self.of[node] = self._rescale(module, incoming, self._target(node))
        elif isinstance(module, Weighting):
            target = self._target(node)
            assert target is not None  # a weighting stands only where two branches meet
            module.weight.copy_((incoming / target).expand(module.weight.numel()).view(module.weight.shape))
            self.of[node] = target
        elif role is Role.SUM:
            self.of[node] = self.of[summands(node)[0]]
        else:
            self.of[node] = self._reshape(node, incoming)

    def _target(self, node: fx.Node) -> Tensor | None:
        """The activation scale that a synapse has to give its output, None if any will do."""
        partner = self.alignments.get(node)
        return None if partner is None else self.of[partner]

    def _rescale(self, module: nn.Module, incoming: Tensor, target: Tensor | None) -> Tensor:
        """Rescale a synapse for inputs of scale `incoming` and outputs of scale `target`; returns the latter."""
        weight = module.get_parameter("weight")
        if incoming.dim():
            reference = incoming.max()
            weight.mul_(_input_factors(module, incoming / reference))
        else:
            reference = incoming
        scale = reference if target is None else target
        if target is not None:
            weight.mul_((reference / target).expand(weight.shape[0]).view(-1, *[1] * (weight.dim() - 1)))
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            bias.div_(scale)
        return scale

    def _reshape(self, node: fx.Node, incoming: Tensor) -> Tensor:
        """Scales per channel `[C]` through a pool (unchanged) or a flatten (repeated for each position)."""
        before, after = node.all_input_nodes[0].meta.get("shape"), node.meta.get("shape")
        if role_of(self.body, node) is Role.NORM and not bool((incoming == 1).all()):
            raise ConversionError(
                f"network: batch norm '{node.target}' is kept, so thresholds must stay 1; fold it before balancing"
            )
        if not incoming.dim() or before is None or after is None:
            return incoming
        if _picks_channels(node, len(before) + 1) or after[0] % incoming.numel():
            raise ConversionError(
                f"network: '{node.name}' picks or mixes channels, so each cannot have a threshold of its own; "
                "convert with one threshold per layer"
            )
        return incoming.repeat_interleave(after[0] // incoming.numel())


def _picks_channels(node: fx.Node, dimensions: int) -> bool:
    """Whether a node takes some of the channels or averages over them, given the dimensions of its input."""
    if node.target not in (torch.mean, "mean"):
        return node.target in (operator.getitem, getattr)
    axes: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    return any(axis is None or axis % dimensions == 1 for axis in (axes if isinstance(axes, (tuple, list)) else [axes]))


def _input_factors(module: nn.Module, factors: Tensor) -> Tensor:
    """Factors `[inputs]` shaped to multiply a synapse's weight `[outputs, inputs / groups, ...]`."""
    weight = module.get_parameter("weight")
    groups = getattr(module, "groups", 1)
    outputs, tail = weight.shape[0], [1] * (weight.dim() - 2)
    by_group = factors.view(groups, 1, -1).expand(groups, outputs // groups, -1)
    return by_group.reshape(outputs, -1, *tail)


def apply_thresholds(body: fx.GraphModule, thresholds: dict[str, Tensor], input_scale: float = 1.0) -> None:
    """Give every neuron its threshold and rescale the synapses after it, in place.

    Args:
        body: a spiking body with the ANN's weights.
        thresholds: by name of the neuron, scalar or `[channels]`, for the currents of the rescaled network.
        input_scale: the activation scale of the input.
    """
    scales = ActivationScales(body, input_scale)
    for node in body.graph.nodes:
        if role_of(body, node) is Role.NEURON:
            scales.set_threshold(node, thresholds[str(node.target)])
        scales.visit(node)


def thresholds_for_activations(
    body: fx.GraphModule, activations: dict[str, Tensor], input_scale: float = 1.0
) -> dict[str, Tensor]:
    """Thresholds at which one spike of each neuron stands for a given activation of the ANN.

    Args:
        body: a spiking body with the ANN's weights; is rescaled in place, so hand in a copy.
        activations: by name of the neuron, scalar or `[channels]`, in units of the ANN.
        input_scale: the activation scale of the input.
    """
    scales = ActivationScales(body, input_scale)
    for node in body.graph.nodes:
        if role_of(body, node) is Role.NEURON:
            scales.set_threshold(node, activations[str(node.target)] / scales.current_scale(node))
        scales.visit(node)
    return {
        name: module.threshold.detach().clone()
        for name, module in body.named_modules()
        if isinstance(module, SpikingNeuron)
    }
