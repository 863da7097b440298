"""The body of a spiking network, compiled once: nodes that know their role, their inputs and the neurons they drive."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from hybridsnn.errors import ConfigError
from hybridsnn.program.operations import Role, module_of, operation_of


@dataclass(eq=False)
class Node:
    """One operation of a program.

    Attributes:
        name: of the module it calls, else of the node of the graph.
        source: the node of the captured graph.
        module: what it calls, None for functions and methods.
        args, kwargs: with nodes in the place of values.
        inputs: the nodes whose values it reads, attributes of the body left out.
        users: the nodes that read its value.
        drives: the layer of neurons, or the output, to which its value flows: in a program with separate paths only.
    """

    name: str
    source: fx.Node
    module: nn.Module | None
    role: Role
    linear: bool
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    inputs: tuple["Node", ...] = ()
    users: list["Node"] = field(default_factory=list)
    drives: "Node | None" = None

    @property
    def temporal(self) -> bool:
        """Whether it calls a module that sees time: values `[T, B, ...]` instead of `[T*B, ...]`."""
        return self.role in (Role.NEURON, Role.TEMPORAL)

    @property
    def ends_path(self) -> bool:
        """Whether it takes in currents: a layer of neurons, or the output."""
        return self.role in (Role.NEURON, Role.OUTPUT)

    def call(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What the operation makes of values."""
        if self.module is not None:
            return self.module(*args, **kwargs)
        if callable(self.source.target):
            return self.source.target(*args, **kwargs)
        return getattr(args[0], str(self.source.target))(*args[1:], **kwargs)

    def arguments(self, value_of: Callable[["Node"], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Its arguments, with a value for each node among them."""

        def fill(argument: Any) -> Any:
            return value_of(argument) if isinstance(argument, Node) else argument

        if len(self.args) == 1 and not self.kwargs:  # nearly all
            return (map_aggregate(self.args[0], fill),), {}
        return map_aggregate(self.args, fill), map_aggregate(self.kwargs, fill)

    def __repr__(self) -> str:
        return f"{self.name} ({self.role.value})"


class Program:
    """A body compiled into nodes.

    Parameters, buffers and the training mode of modules may change; if the graph or a module is exchanged, compile anew
    (`describes` tells).

    Args:
        body: the captured graph of a spiking network, or, before its ReLUs are replaced, of an ANN.
        nodes: those of another arrangement of the same body; None compiles it.
    """

    def __init__(self, body: fx.GraphModule, nodes: Sequence[Node] | None = None):
        self.body = body
        self.nodes = _compile(body) if nodes is None else tuple(nodes)
        self.shapes_of: dict[tuple[int, ...], dict[Node, tuple[int, ...]]] = {}  # see `passes.shapes`
        self._signature = _signature(body)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of a model compiles its own body when it runs."""
        return None

    def describes(self, body: fx.GraphModule) -> bool:
        """Whether a body still is the one that was compiled."""
        return self._signature == _signature(body)

    @cached_property
    def inputs(self) -> tuple[Node, ...]:
        """What a run is given frames for."""
        return tuple(node for node in self.nodes if node.role is Role.INPUT)

    @cached_property
    def output(self) -> Node:
        """What flows into the readout."""
        return next(node for node in self.nodes if node.role is Role.OUTPUT)

    @cached_property
    def neurons(self) -> tuple[Node, ...]:
        """The layers of neurons, in the order in which they run."""
        return tuple(node for node in self.nodes if node.role is Role.NEURON)

    @cached_property
    def freed(self) -> dict[Node, tuple[Node, ...]]:
        """The values that nothing reads any more after a node has run."""
        last = {source: node for node in self.nodes for source in node.inputs}
        freed: dict[Node, list[Node]] = {}
        for source, node in last.items():
            freed.setdefault(node, []).append(source)
        return {node: tuple(sources) for node, sources in freed.items()}

    @cached_property
    def _static(self) -> Callable[[frozenset[Node]], frozenset[Node]]:
        return lru_cache(lambda given: frozenset(_static_nodes(self.nodes, given)))

    def static(self, given: Iterable[Node]) -> frozenset[Node]:
        """The nodes whose values do not change in time, where those of the given inputs do not: the inputs themselves,
        and what is made of them before the first neurons."""
        return self._static(frozenset(given))

    def learning(self) -> frozenset[Node]:
        """The nodes at or before which a parameter requires a gradient, as of now."""
        found: set[Node] = set()
        for node in self.nodes:
            learns = node.module is not None and any(parameter.requires_grad for parameter in node.module.parameters())
            if node.role is not Role.OUTPUT and (learns or not found.isdisjoint(node.inputs)):
                found.add(node)
        return frozenset(found)

    @cached_property
    def segments(self) -> dict[Node, "Segment"]:
        """For each layer of neurons, what computes its currents from the spikes of earlier ones."""
        return {neurons: Segment.of(self.nodes, neurons) for neurons in self.neurons}

    @cached_property
    def separated(self) -> "Program":
        """The same with a path of its own to each layer of neurons; each node knows which layer it `drives`.

        Paths that part only behind a synapse are doubled, since the trace of its input has the leak of the neurons at
        the end. The readout counts as a layer.
        """
        return Program(self.body, _separated(self.nodes))

    def refuse_hooks(self, what: str) -> None:
        """Refuse modules with hooks of the user, where their `forward` is not what runs.

        Raises:
            ConfigError: that names the first one.
        """
        for node in self.nodes:
            if has_hooks(node.module):
                raise ConfigError(
                    f"network: '{node.name}' has forward or backward hooks, which {what} does not call; remove them"
                )


def has_hooks(module: nn.Module | None) -> bool:
    """Whether something is to be called when a module runs, forward or backward."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return module is not None and any(getattr(module, name) for name in names)


@dataclass(frozen=True)
class Segment:
    """The part of a program between one layer of neurons and those that drive it.

    Attributes:
        sources: layers of neurons, or inputs of the program.
        nodes: from the sources, excluded, to the currents, in the order in which they run.
        current: the node whose value is the current of the neurons.
    """

    sources: tuple[Node, ...]
    nodes: tuple[Node, ...]
    current: Node

    @classmethod
    def of(cls, nodes: Sequence[Node], neurons: Node) -> "Segment":
        """The segment that ends at a layer of neurons."""
        needed: set[Node] = set()
        pending = [*neurons.inputs]
        while pending:
            node = pending.pop()
            if node not in needed:
                needed.add(node)
                pending += [] if _is_source(node) else _read(node)
        ordered = [node for node in nodes if node in needed]
        sources = tuple(node for node in ordered if _is_source(node))
        return cls(sources, tuple(node for node in ordered if not _is_source(node)), neurons.inputs[0])


def _is_source(node: Node) -> bool:
    return node.role in (Role.INPUT, Role.NEURON)


def _read(node: Node) -> list[Node]:
    """All nodes among the arguments of a node, attributes of the body too."""
    found: dict[Node, None] = {}
    node.arguments(lambda source: found.setdefault(source))
    return list(found)


def _signature(body: fx.GraphModule) -> tuple[Any, ...]:
    """What changes when a body's graph is edited or one of its modules exchanged."""
    modules = dict(body.named_modules())
    return tuple(
        (node, node.op, node.target, id(modules.get(str(node.target))), node.args) for node in body.graph.nodes
    )


def _compile(body: fx.GraphModule) -> tuple[Node, ...]:
    made: dict[fx.Node, Node] = {}

    def replace(argument: Any) -> Any:
        return made[argument] if isinstance(argument, fx.Node) else argument

    for source in body.graph.nodes:
        module = module_of(body, source)
        operation = operation_of(source, module)
        name = str(source.target) if module is not None or source.op == "get_attr" else source.name
        node = Node(name, source, module, operation.role, operation.linear)
        node.args = map_aggregate(source.args, replace)
        node.kwargs = map_aggregate(source.kwargs, replace)
        _connect(node)
        made[source] = node
    return tuple(made.values())


def _connect(node: Node) -> None:
    """Find the inputs of a node, and tell them of it."""
    node.inputs = tuple(source for source in _read(node) if source.role is not Role.ATTRIBUTE)
    for source in node.inputs:
        source.users.append(node)


def _static_nodes(nodes: Sequence[Node], given: Collection[Node]) -> set[Node]:
    found = set(given)
    for node in nodes:
        # The answer to a question for a shape may be applied to a value that does change.
        changes = node.temporal or node.role in (Role.OUTPUT, Role.QUESTION)
        if node.inputs and not changes and found.issuperset(node.inputs):
            found.add(node)
    return found


def _separated(nodes: Sequence[Node]) -> tuple[Node, ...]:
    reached: dict[Node, dict[Node, None]] = {node: {} for node in nodes}  # ordered sets of layers
    for node in reversed(nodes):
        for source in _read(node):
            reached[source].update({node: None} if node.ends_path else reached[node])

    copies: dict[tuple[Node, Node | None], Node] = {}
    made: list[Node] = []
    for node in nodes:
        alone = node.ends_path or node.role is Role.INPUT
        for end in [node] if alone else reached[node]:

            def copy_of(argument: Any, end: Node = end) -> Any:
                if not isinstance(argument, Node):
                    return argument
                return copies.get((argument, end)) or copies[argument, None]

            copy = Node(node.name, node.source, node.module, node.role, node.linear)
            copy.args = map_aggregate(node.args, copy_of)
            copy.kwargs = map_aggregate(node.kwargs, copy_of)
            copies[node, None if alone else end] = copy
            made.append(copy)
            _connect(copy)
    # The layer at the end of each path is copied after what drives it.
    for (original, reached_end), copy in copies.items():
        if reached_end is not None:
            copy.drives = copies[reached_end, None]
        elif original.role is Role.INPUT:
            copy.drives = copies[next(iter(reached[original])), None]
    return tuple(made)


def attribute(body: nn.Module, name: str) -> Tensor:
    """A parameter or buffer of a body by its dotted name."""
    owner, _, leaf = name.rpartition(".")
    value = getattr(body.get_submodule(owner), leaf)
    assert isinstance(value, torch.Tensor)
    return value
