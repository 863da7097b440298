"""A spiking body cut at its neurons."""

from dataclasses import dataclass

from torch import Tensor, fx

from hybridsnn.conversion.preparation import module_of
from hybridsnn.model import Simulation
from hybridsnn.neurons import SpikingNeuron


@dataclass(frozen=True)
class Segment:
    """The part of a body between one layer of neurons and those that drive it."""

    graph: fx.GraphModule
    sources: tuple[fx.Node, ...]  # neurons, or the network's input

    @classmethod
    def before(cls, body: fx.GraphModule, neuron: fx.Node) -> "Segment":
        """What computes a neuron's current from spikes; shares its modules with the body."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        needed: set[fx.Node] = set()
        pending = list(neuron.all_input_nodes)
        while pending:
            node = pending.pop()
            if node not in needed:
                needed.add(node)
                if not (node.op == "placeholder" or isinstance(module_of(body, node), SpikingNeuron)):
                    pending += node.all_input_nodes
        sources = []
        for node in body.graph.nodes:
            if node in needed:
                if node.op == "placeholder" or isinstance(module_of(body, node), SpikingNeuron):
                    copies[node] = graph.placeholder(node.name)
                    sources.append(node)
                else:
                    copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[neuron.all_input_nodes[0]])
        return cls(fx.GraphModule(body, graph), tuple(sources))

    def current(self, *spikes: Tensor) -> Tensor:
        """The current `[T, B, *N]`, for what each of the sources sends, `[T, B, ...]`."""
        return Simulation(self.graph).simulate(*spikes)
