"""From a prepared graph to a spiking one: ReLUs become neurons, sums get their scales aligned."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from hybridsnn.activations import QCFS
from hybridsnn.conversion.form import add_module
from hybridsnn.conversion.preparation import prepare, record_shapes
from hybridsnn.conversion.scale_rules import axes_of_one_scale, fits, keeps_scale, through
from hybridsnn.errors import ConversionError
from hybridsnn.neurons import SharedDropout, SpikingNeuron
from hybridsnn.program.operations import DROPOUTS, Role, Weighting, is_sum, module_of, role_of

GRANULARITIES = {
    "layer": "one threshold per layer",
    "channel": "one threshold per channel",
    "neuron": "one threshold per neuron; those of a layer start at one value",
}

CEILINGS = "ceilings"  # in the `meta` of a body: of the ANN's staircase activations, by the name of the neuron


def spiking_body(
    network: nn.Module,
    input_shape: tuple[int, ...],
    *,
    granularity: str = "layer",
    reset: str = "soft",
    initial_potential: float = 0.0,
    fold_batch_norm: bool = True,
    max_pool: str = "refuse",
    biases: bool = False,
    potentials: str | None = None,
) -> fx.GraphModule:
    """A copy of a network with a spiking neuron for every ReLU; thresholds are 1 until a balancer sets them.

    Its structure, and so its state dict, depends on the network's structure and these arguments alone.

    Args:
        network: the trained network.
        input_shape: of one sample.
        granularity: of thresholds, one of `GRANULARITIES`.
        reset, initial_potential: see `SpikingNeuron`.
        fold_batch_norm, max_pool: see `prepare`.
        biases: give each synapse before neurons a bias, which starts at 0 if it has none in the network.
        potentials: granularity of initial potentials in the state dict; None: all are the number given.

    Raises:
        ConversionError: if the network has a part that cannot be made spiking.
    """
    body = prepare(network, input_shape, fold_batch_norm=fold_batch_norm, max_pool=max_pool)
    record_shapes(body, input_shape)
    ceilings: dict[str, Tensor] = {}
    for node in body.graph.nodes:
        module = module_of(body, node)
        if role_of(body, node) is Role.RELU:
            sample = node.meta["shape"]
            shapes = {"layer": (), "channel": sample[:1], "neuron": sample, None: None}
            neuron = SpikingNeuron(
                shapes[granularity] or (),
                reset=reset,
                initial_potential=initial_potential,
                potential_shape=shapes[potentials],
                ceiling=float(module.max_val) if isinstance(module, nn.Hardtanh) else None,
            )
            if isinstance(module, QCFS):
                ceilings[str(node.target)] = module.ceiling.detach().clone()
            body.set_submodule(str(node.target), neuron)
        elif isinstance(module, DROPOUTS):
            body.set_submodule(
                str(node.target), SharedDropout(float(module.p), whole_channels=type(module) is not nn.Dropout)
            )
    if not any(isinstance(module, SpikingNeuron) for module in body.modules()):
        raise ConversionError(f"network: {type(network).__name__} has no ReLU, so nothing in it would spike")
    place_weightings(body, granularity)
    if biases:
        _give_biases(body)
    parameter = next(network.parameters(), next(body.parameters()))
    for module in body.modules():
        module.to(parameter.device, parameter.dtype if isinstance(module, Weighting) else None)
    body.recompile()
    body.meta["granularity"] = granularity
    body.meta[CEILINGS] = ceilings
    return body


def bias_synapse(body: fx.GraphModule, end: fx.Node) -> nn.Module | None:
    """The synapse whose bias is added to the current of a layer of neurons, or of the readout, and to nothing else;
    None if none is.
    """
    pending = [end.all_input_nodes[0]]
    while pending:
        node = pending.pop(0)
        if len(node.users) > 1:
            continue
        if role_of(body, node) is Role.SYNAPSE:
            return module_of(body, node)
        if is_sum(node) or role_of(body, node) is Role.DROPOUT:
            pending += node.all_input_nodes
    return None


def _give_biases(body: fx.GraphModule) -> None:
    for node in body.graph.nodes:
        synapse = bias_synapse(body, node) if role_of(body, node) in (Role.NEURON, Role.OUTPUT) else None
        if synapse is not None and synapse.bias is None:
            weight = synapse.get_parameter("weight")
            outputs = int(synapse.out_features if isinstance(synapse, nn.Linear) else synapse.out_channels)
            synapse.bias = nn.Parameter(weight.new_zeros(outputs), requires_grad=weight.requires_grad)


def for_measuring(body: fx.GraphModule) -> fx.GraphModule:
    """A copy of a spiking body to find thresholds in: one for a layer, where the body has one for each neuron."""
    body = copy.deepcopy(body)
    if body.meta["granularity"] == "neuron":
        for module in body.modules():
            if isinstance(module, SpikingNeuron):
                module.threshold = nn.Parameter(module.threshold.new_ones(()), requires_grad=False)
    return body


def source_of(body: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Walk up from a value through what keeps its scale and dimensions (pools, dropout) to what set it."""
    while keeps_scale(body, node):
        node = node.all_input_nodes[0]
    return node


def summands(node: fx.Node) -> list[fx.Node]:
    """The two values that a sum adds."""
    return [argument for argument in node.args[:2] if isinstance(argument, fx.Node)]


def alignments(body: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """For each synapse that has to take over the scale of another value: that value's source.

    Of the two summands of a sum the one that is computed first sets the scale; the other ends in a synapse.
    """
    order = {node: place for place, node in enumerate(body.graph.nodes)}
    found = {}
    for node in body.graph.nodes:
        if is_sum(node):
            first, second = sorted((source_of(body, value) for value in summands(node)), key=order.__getitem__)
            found[second] = first
    return found


def place_weightings(body: fx.GraphModule, granularity: str) -> None:
    """Put weightings where values of different scales meet and no synapse can be rescaled.

    That is, on the later summand of a sum, unless it ends in a synapse that serves nothing else, and before whatever
    mixes values, or asks for one scale. Which scales differ is found out with random ones in the place of thresholds.
    """
    random = torch.Generator().manual_seed(0)
    scales: dict[fx.Node, Tensor] = {}

    def insert(reader: fx.Node, value: fx.Node, shape: tuple[int, ...]) -> fx.Node:
        name = add_module(body, f"{reader.name}_weighting", Weighting(shape))
        with body.graph.inserting_before(reader):
            weighting = body.graph.call_module(name, (value,))
        weighting.meta["shape"] = value.meta["shape"]
        return weighting

    for node in list(body.graph.nodes):
        role = role_of(body, node)
        if role is Role.INPUT:
            scales[node] = torch.ones([1] * len(node.meta["shape"]), dtype=torch.float64)
            continue
        if not node.all_input_nodes:
            continue
        if role is Role.SUM:
            order = {node: place for place, node in enumerate(body.graph.nodes)}
            earlier, later = sorted(summands(node), key=lambda value: order[source_of(body, value)])
            if not _can_take_over(body, scales[earlier], earlier, later):
                ratio = scales[later] / scales[earlier]
                shape = tuple(ratio.shape) if ratio.numel() > 1 else ()
                if granularity == "channel":
                    shape = (node.meta["shape"][0], *(shape or [1] * ratio.dim())[1:])
                weighting = insert(node, later, shape)
                arguments: list[Any] = list(node.args)
                arguments[max(place for place, argument in enumerate(arguments) if argument is later)] = weighting
                node.args = tuple(arguments)
                scales[weighting] = scales[earlier]
            scales[node] = scales[earlier]
            continue
        source, module = node.all_input_nodes[0], module_of(body, node)
        scale = scales[source]
        if any(scale.shape[axis] > 1 for axis in axes_of_one_scale(body, node, scale.dim(), granularity)):
            weighting = insert(node, source, tuple(scale.shape))
            node.replace_input_with(source, weighting)
            scales[weighting] = scale = scale.new_ones([1] * scale.dim())
        if role is Role.NEURON:
            channels = node.meta["shape"][:1] if granularity == "channel" else ()
            steps = torch.rand(channels, generator=random, dtype=torch.float64) + 0.5
            scales[node] = scale * steps.reshape([-1, *[1] * (scale.dim() - 1)])
        elif role in (Role.SYNAPSE, Role.NORM):
            scales[node] = scale.new_ones([1] * len(node.meta["shape"]))
        elif role is Role.WEIGHTING:
            fitting = module is not None and fits(scale, module.get_parameter("weight"))
            scales[node] = scale.new_ones([1] * scale.dim()) if fitting else scale
        elif role is not Role.OUTPUT:
            scales[node] = through(body, node, [scales[each] for each in node.all_input_nodes])


def _can_take_over(body: fx.GraphModule, scale: Tensor, earlier: fx.Node, later: fx.Node) -> bool:
    """Whether the synapse of a summand can be rescaled to the scale of the other."""
    source = source_of(body, later)
    if later is earlier or role_of(body, source) is not Role.SYNAPSE or not _serves_one(body, later):
        return False
    own = len(scale.shape) - 1 if isinstance(module_of(body, source), nn.Linear) else 0
    return all(size == 1 for axis, size in enumerate(scale.shape) if axis != own)


def _serves_one(body: fx.GraphModule, value: fx.Node) -> bool:
    """Whether nothing else uses a value or what it is made from, up to its source."""
    source = source_of(body, value)
    while True:
        if len(value.users) > 1:
            return False
        if value is source:
            return True
        value = value.all_input_nodes[0]
