"""From a prepared graph to a spiking one: ReLUs become neurons, sums get their scales aligned."""

import copy
from typing import Any

from torch import Tensor, fx, nn

from hybridsnn.activations import QCFS
from hybridsnn.conversion.preparation import add_module, prepare, record_shapes
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
    body = prepare(network, fold_batch_norm=fold_batch_norm, max_pool=max_pool)
    record_shapes(body, input_shape)
    ceilings: dict[str, Tensor] = {}
    for node in body.graph.nodes:
        module = module_of(body, node)
        if role_of(body, node) is Role.RELU:
            sample = node.meta["shape"]
            shapes = {"layer": (), "channel": sample[:1], "neuron": sample, None: None}
            shape, of_potentials = shapes[granularity] or (), shapes[potentials]
            neuron = SpikingNeuron(
                shape, reset=reset, initial_potential=initial_potential, potential_shape=of_potentials
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
    _give_each_summand_a_synapse(body, granularity)
    if biases:
        _give_biases(body)
    parameter = next(body.parameters())
    body.to(parameter.device)
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
            synapse.bias = nn.Parameter(weight.new_zeros(len(weight)), requires_grad=weight.requires_grad)


def for_measuring(body: fx.GraphModule) -> fx.GraphModule:
    """A copy of a spiking body to find thresholds in: one for a layer, where the body has one for each neuron."""
    body = copy.deepcopy(body)
    if body.meta["granularity"] == "neuron":
        for module in body.modules():
            if isinstance(module, SpikingNeuron):
                module.threshold = nn.Parameter(module.threshold.new_ones(()), requires_grad=False)
    return body


def source_of(body: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Walk up from a value through what keeps its scale (pools, dropout, reshapes) to what set it.

    That is a synapse, a weighting, a neuron, a sum, or the input.
    """
    while True:
        if role_of(body, node) in (Role.INPUT, Role.SUM, Role.SYNAPSE, Role.WEIGHTING, Role.NEURON):
            return node
        node = node.all_input_nodes[0]


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


def _give_each_summand_a_synapse(body: fx.GraphModule, granularity: str) -> None:
    """Put a weighting on the later summand of each sum, unless it ends in a synapse that serves nothing else."""
    for node in list(body.graph.nodes):
        if not is_sum(node):
            continue
        order = {node: place for place, node in enumerate(body.graph.nodes)}
        values = sorted(summands(node), key=lambda value: order[source_of(body, value)])
        earlier, later = values
        ends_in_synapse = role_of(body, source_of(body, later)) is Role.SYNAPSE
        if ends_in_synapse and later is not earlier and _serves_one(body, later):
            continue
        sample = node.meta["shape"]
        shape = (sample[0], *[1] * (len(sample) - 1)) if granularity == "channel" else ()
        name = add_module(body, f"{node.name}_weighting", Weighting(shape))
        with body.graph.inserting_before(node):
            weighting = body.graph.call_module(name, (later,))
        arguments: list[Any] = list(node.args)
        arguments[max(place for place, argument in enumerate(arguments) if argument is later)] = weighting
        node.args = tuple(arguments)


def _serves_one(body: fx.GraphModule, value: fx.Node) -> bool:
    """Whether nothing else uses a value or what it is made from, up to its source."""
    source = source_of(body, value)
    while True:
        if len([user for user in value.users]) > 1:
            return False
        if value is source:
            return True
        value = value.all_input_nodes[0]
