"""The activation scale of each node, and the weights that follow from it.

The activation scale of a value is the activation of the ANN that a 1 in the spiking network stands for. That of the
spikes of a layer is its threshold times that of its current. Weights are copied unless they must change: a bias is
divided by the scale of its layer, scales that differ (one per channel) are folded into the weights that follow, and
where two branches meet in a sum the later one takes over the scale of the other.

The scales of a value have as many dimensions as a sample of it, of size 1 along those in which they are all equal.
"""

import torch
from torch import Tensor, fx, nn

from hybridsnn.conversion.replacement import alignments, summands
from hybridsnn.conversion.scale_rules import fits, through
from hybridsnn.errors import ConversionError
from hybridsnn.neurons import SpikingNeuron
from hybridsnn.program.operations import TRANSPOSED, Role, Weighting, module_of, role_of


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
        self.of: dict[fx.Node, Tensor] = {}
        self.thresholds: dict[fx.Node, Tensor] = {}  # scalar, or [channels]

    def current_scale(self, neuron: fx.Node) -> Tensor:
        """The activation scale of the current into a neuron, a scalar or `[channels]`."""
        scale = self.of[neuron.all_input_nodes[0]]
        return scale.reshape(()) if scale.numel() == 1 else scale.flatten()

    def set_threshold(self, neuron: fx.Node, threshold: Tensor) -> None:
        """Give a neuron its threshold, a scalar or `[channels]`; a layer that never fires in the ANN keeps 1.

        A layer with a threshold for each neuron gets the same one for all. Where the ReLU of the ANN has a ceiling, a
        threshold is at most that, so that neurons that fire at every step stand for it.
        """
        module = self.body.get_submodule(str(neuron.target))
        assert isinstance(module, SpikingNeuron)
        threshold = torch.where(threshold > 0, threshold, torch.ones_like(threshold))
        if module.ceiling is not None:
            threshold = torch.minimum(threshold, (module.ceiling / self.current_scale(neuron)).to(threshold))
        self.thresholds[neuron] = threshold.to(module.threshold)
        with torch.no_grad():
            module.threshold.copy_(self.thresholds[neuron])

    @torch.no_grad()
    def visit(self, node: fx.Node) -> None:
        """Find the activation scale of a node's value, and rescale its weights if it has any."""
        module, role = module_of(self.body, node), role_of(self.body, node)
        if role is Role.INPUT:
            # In double precision, so that scales stay true through a deep network.
            device = next(self.body.parameters()).device
            scale = torch.tensor(self.input_scale, dtype=torch.float64, device=device)
            self.of[node] = scale.reshape([1] * len(node.meta["shape"]))
            return
        if node.op == "output" or not node.all_input_nodes:
            return
        incoming = [self.of[source] for source in node.all_input_nodes]
        if role is Role.NEURON:
            threshold = self.thresholds[node].to(incoming[0])
            self.of[node] = incoming[0] * threshold.reshape([-1, *[1] * (incoming[0].dim() - 1)])
        elif module is not None and role is Role.SYNAPSE:
            self.of[node] = self._rescale(module, incoming[0], self._target(node), len(node.meta["shape"]))
        elif isinstance(module, Weighting):
            self.of[node] = self._reweight(module, incoming[0], self._target(node))
        elif role is Role.SUM:
            self.of[node] = self.of[summands(node)[0]]
        elif role is Role.NORM and not bool((incoming[0] == 1).all()):
            raise ConversionError(
                f"network: batch norm '{node.target}' is kept, so thresholds must stay 1; fold it before balancing"
            )
        else:
            self.of[node] = through(self.body, node, incoming)

    def _target(self, node: fx.Node) -> Tensor | None:
        """The activation scale that a synapse has to give its output, None if any will do."""
        partner = self.alignments.get(node)
        return None if partner is None else self.of[partner]

    def _rescale(self, module: nn.Module, incoming: Tensor, target: Tensor | None, rank: int) -> Tensor:
        """Rescale a synapse for inputs of scale `incoming` and outputs of scale `target`; returns the latter."""
        reference = incoming.max()
        if incoming.numel() > 1:
            _multiply_inputs(module, (incoming / reference).flatten())
        scale = reference if target is None else target.flatten()
        if target is not None:
            _multiply_outputs(module, (reference / target).flatten())
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            bias.div_(scale)
        return reference.reshape([1] * rank) if target is None else target

    def _reweight(self, module: Weighting, incoming: Tensor, target: Tensor | None) -> Tensor:
        """Likewise; where nothing is asked of its outputs, they get one scale if its weight has room for that."""
        if target is None:
            if not fits(incoming, module.weight):  # it has no bias, or all that it reads would have one scale
                return incoming
            target = incoming.max().reshape([1] * incoming.dim())
        for parameter, factor in ((module.weight, incoming / target), (module.bias, 1 / target)):
            if parameter is not None:
                parameter.mul_(factor if factor.numel() > 1 else factor.reshape(()))
        return target


def _multiply_inputs(module: nn.Module, factors: Tensor) -> None:
    """Multiply the weights of each input of a synapse by a factor, `[inputs]`."""
    weight = module.get_parameter("weight")
    if isinstance(module, TRANSPOSED):  # [inputs, outputs / groups, ...]
        weight.mul_(factors.view(-1, *[1] * (weight.dim() - 1)))
        return
    groups, outputs = int(getattr(module, "groups", 1)), len(weight)  # [outputs, inputs / groups, ...]
    by_group = factors.view(groups, 1, -1).expand(groups, outputs // groups, -1)
    weight.mul_(by_group.reshape(outputs, -1, *[1] * (weight.dim() - 2)))


def _multiply_outputs(module: nn.Module, factors: Tensor) -> None:
    """Multiply the weights of each output of a synapse by a factor, `[outputs]` or `[1]`."""
    weight = module.get_parameter("weight")
    if isinstance(module, TRANSPOSED) and len(factors) > 1:
        by_group = factors.view(int(module.groups), 1, -1).expand(-1, len(weight) // int(module.groups), -1)
        weight.mul_(by_group.reshape(len(weight), -1, *[1] * (weight.dim() - 2)))
    else:
        weight.mul_(factors.view(-1, *[1] * (weight.dim() - 1)))


def apply_thresholds(body: fx.GraphModule, thresholds: dict[str, Tensor], input_scale: float = 1.0) -> ActivationScales:
    """Give every neuron its threshold and rescale the synapses after it, in place.

    Args:
        body: a spiking body with the ANN's weights.
        thresholds: by name of the neuron, scalar or `[channels]`, for the currents of the rescaled network.
        input_scale: the activation scale of the input.

    Returns:
        the scales of all values, and the thresholds as they are now.
    """
    scales = ActivationScales(body, input_scale)
    for node in body.graph.nodes:
        if role_of(body, node) is Role.NEURON:
            scales.set_threshold(node, thresholds[str(node.target)])
        scales.visit(node)
    return scales


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
