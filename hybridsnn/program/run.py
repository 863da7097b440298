"""The one loop that runs a program over time and over its nodes.

Synapses, pools and sums are ordinary modules and functions, which see one large batch `[T*B, ...]`; only neurons and
other modules that see time are handed `[T, B, ...]` and a state. A value that does not change in time (a directly coded
image, and what is made of it before the first neurons) is static: it is computed once, on `[B, ...]`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hybridsnn.encoders import Frames, constant_in_time
from hybridsnn.kernels.neuron import Surrogate
from hybridsnn.kernels.synapse.choice import transmit
from hybridsnn.neurons import SharedDropout
from hybridsnn.program.graph import Node, Program, Segment, attribute, has_hooks
from hybridsnn.program.operations import Role

Observer = Callable[[str, Tensor], None]


class Flow:
    """What a run does at each kind of node, and what it keeps for its gradients.

    This one keeps nothing: gradients, where they are asked for, are left to automatic differentiation. Others, which
    know how to do with less, inherit from it.

    Args:
        surrogate: stands in for the derivative of a spike; None gives no gradient through spikes.

    Attributes:
        goes_on: whether what it keeps belongs to the steps that follow too, so that they must be given the same run.
    """

    goes_on = False

    def __init__(self, surrogate: Surrogate | None = None):
        self.surrogate = surrogate

    def simulate(self, run: "Run", inputs: Sequence[Tensor | Frames]) -> Tensor:
        """A whole run, or some steps of one: frames `[T, B, ...]` to what flows into the readout, `[T, B, K]`."""
        return run.in_chunks(inputs, (len(inputs[0]),))

    def begin(self, run: "Run") -> None:
        """Called before each chunk of time."""

    def static_inputs(self, run: "Run", given: Mapping[Node, Tensor | Frames]) -> list[Node]:
        """Those of the given nodes whose values `[T, B, ...]` do not change in the whole run."""
        return [node for node, values in given.items() if constant_in_time(values)]

    def fire(self, run: "Run", node: Node, current: Tensor) -> Tensor:
        """Currents of a layer of neurons `[T, B, *N]` to its spikes; leaves its state in `run.states`."""
        assert node.module is not None
        before, overwrite = run.states.get(node.name), run.is_last_use(node)
        spikes, run.states[node.name] = node.module(current, before, self.surrogate, overwrite=overwrite)
        return spikes

    def transmit(self, run: "Run", node: Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        """What a synapse makes of values `[N, ...]`."""
        result: Tensor = node.call(args, kwargs) if torch.is_grad_enabled() else transmit(node.module, *args, **kwargs)
        return result

    def compute(self, run: "Run", node: Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What any other operation makes of values `[N, ...]`."""
        return node.call(args, kwargs)

    def hold(self, run: "Run", node: Node, value: Any) -> Any:
        """What to keep of a static value that others use."""
        return value

    def recall(self, run: "Run", node: Node, held: Any) -> Any:
        """A static value, from what was kept of it."""
        return held

    def note(self, run: "Run", node: Node, value: Any) -> None:
        """Called with each value that changes in time."""


class Run:
    """A program on its way through time.

    Args:
        program: what runs.
        flow: what happens at its nodes.
        states: of the modules that see time, by name, from an earlier run. Holds those after the last step so far.
        observe: called with the name and the spikes `[T, B, *N]` of each layer of neurons.
        nodes: run these only, and not the whole program.
    """

    def __init__(
        self,
        program: Program,
        flow: Flow | None = None,
        *,
        states: dict[str, Any] | None = None,
        observe: Observer | None = None,
        nodes: Sequence[Node] | None = None,
    ):
        self.program, self.flow, self.observe = program, flow or Flow(), observe
        self.nodes = program.nodes if nodes is None else nodes
        self.states = dict(states or {})
        self.static: frozenset[Node] = frozenset()
        self.frames: dict[Node, Tensor] = {}  # of static inputs, `[B, ...]`
        self.held: dict[Node, Any] = {}  # of static values that others use
        self.values: dict[Node, Any] = {}
        self.timesteps = self.batch = 0  # of the chunk that is running
        self.started = False

    def simulate(self, *inputs: Tensor | Frames) -> Tensor:
        """Run over time: frames `[T, B, ...]` of each input to what flows into the readout, `[T, B, K]`.

        May be called again with the steps that follow. Frames with stride 0 along `T` are static.
        """
        return self.flow.simulate(self, inputs)

    def in_chunks(self, inputs: Sequence[Tensor | Frames], chunks: Sequence[int]) -> Tensor:
        """The same, so many steps at once in each chunk."""
        return self.value_of(self.program.output, dict(zip(self.program.inputs, inputs, strict=True)), chunks)

    def value_of(self, wanted: Node, given: Mapping[Node, Tensor | Frames], chunks: Sequence[int]) -> Tensor:
        """The value of a node, `[T, B, ...]`, from those of others, `[T, B, ...]`."""
        if not self.started:
            self._begin(given, wanted)
        outputs, start = [], 0
        for steps in chunks:
            self.timesteps = steps
            self.flow.begin(self)
            self.values = {node: self.flow.recall(self, node, held) for node, held in self.held.items()}
            for node in given:
                if node not in self.static:
                    chunk = given[node][start : start + steps]
                    self.batch = chunk.shape[1]
                    self.values[node] = chunk.flatten(0, 1)
                    self.flow.note(self, node, self.values[node])
            self._walk()
            outputs.append(self._over_time(wanted))
            self.values = {}
            start += steps
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def static_values(self) -> dict[Node, Any]:
        """All static values."""
        self.values = dict(self.frames)
        for node in self.nodes:
            if node in self.static and node not in self.values:
                self.values[node] = self._compute(node)
        values, self.values = self.values, {}
        return values

    def is_last_use(self, node: Node) -> bool:
        """Whether nothing but a node reads its input, which a synapse made: its memory may be used."""
        (source,) = node.inputs
        alone = len(source.users) == 1 and not has_hooks(source.module)
        return alone and source.role is Role.SYNAPSE and source not in self.static

    def evaluate(self, node: Node, values: dict[Node, Any]) -> Any:
        """The value of one node in the chunk of time that is set, from those of its inputs."""
        self.values = values
        result, self.values = self._compute(node), {}
        return result

    def _begin(self, given: Mapping[Node, Tensor | Frames], wanted: Node) -> None:
        """Find out what is static, and compute it."""
        self.started = True
        self.static = self.program.static(self.flow.static_inputs(self, given))
        self.frames = {node: given[node][:1][0] for node in given if node in self.static}
        self.batch = next((len(frame) for frame in self.frames.values()), 0)
        for node, value in self.static_values().items():
            if node is wanted or not self.static.issuperset(node.users):
                self.held[node] = self.flow.hold(self, node, value)

    def _walk(self) -> None:
        freed = self.program.freed
        for node in self.nodes:
            if node in self.static or node in self.values or node.role is Role.ATTRIBUTE:
                continue
            self.values[node] = self._compute(node)
            self.flow.note(self, node, self.values[node])
            for source in freed.get(node, ()):
                self.values.pop(source, None)

    def _compute(self, node: Node) -> Any:
        args, kwargs = node.arguments(lambda source: self._present(source, node))
        if node.role is Role.NEURON:
            spikes = self.flow.fire(self, node, args[0])
            if self.observe is not None:
                self.observe(node.name, spikes)
            return spikes.flatten(0, 1)
        if node.role is Role.SYNAPSE:
            return self.flow.transmit(self, node, args, kwargs)
        if node.role is Role.TEMPORAL or isinstance(node.module, SharedDropout):
            steps = 1 if node in self.static else self.timesteps
            values = args[0] if node.temporal else args[0].unflatten(0, (steps, -1))
            assert node.module is not None
            values, self.states[node.name] = node.module(values, self.states.get(node.name), self.flow.surrogate)
            return values.flatten(0, 1)
        return args[0] if node.role is Role.OUTPUT else self.flow.compute(self, node, args, kwargs)

    def _present(self, source: Node, reader: Node) -> Any:
        """A value as its reader sees it."""
        if source.role is Role.ATTRIBUTE:
            return attribute(self.program.body, source.name)
        value = self.values[source]
        if not isinstance(value, Tensor) or reader in self.static:
            return value
        if reader.temporal or reader.role is Role.OUTPUT:
            return self._over_time(source)
        if source not in self.static:
            return value
        if reader.role is Role.QUESTION:
            return value[:1].expand(self.timesteps * self.batch, *value.shape[1:])
        return self._over_time(source).flatten(0, 1)

    def _over_time(self, node: Node) -> Tensor:
        """A value as `[T, B, ...]`."""
        value: Tensor = self.values[node]
        if node.role is Role.OUTPUT:
            return value
        if node in self.static:
            return value.unsqueeze(0).expand(self.timesteps, *value.shape)
        return value.unflatten(0, (self.timesteps, self.batch))


def currents_of(program: Program, segment: Segment, spikes: Mapping[Node, Tensor]) -> Tensor:
    """The currents `[T, B, *N]` of a layer of neurons, from the spikes or frames `[T, B, ...]` that drive it."""
    steps = len(next(iter(spikes.values())))
    return Run(program, nodes=segment.nodes).value_of(segment.current, spikes, (steps,))
