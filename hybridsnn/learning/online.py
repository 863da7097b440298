"""Running a spiking network one step at a time, with traces instead of a history."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hybridsnn.errors import ConfigError
from hybridsnn.kernels.neuron import online
from hybridsnn.kernels.synapse.learning import LearningSynapse, Scale, Transmit, learning_synapse
from hybridsnn.model import SYNAPSES
from hybridsnn.neurons import SpikingNeuron, TemporalModule
from hybridsnn.surrogates import Surrogate


class OnlineSimulation(fx.Interpreter):
    """Runs a body one step at a time, so that the backward pass of each step gives its share of the whole gradient.

    Errors go back through the layers at one step only. What earlier steps contribute comes from traces, which run
    forward: each synapse has one of its input, `trace[t] = leak * trace[t-1] + x[t]`, with the leak of the neurons
    it feeds, and its weight gets `error[t] * trace[t]`. The trace of an input that is always 1 serves the biases, and
    the scale and shift of a batch norm: exact for a shift, and for a scale if the normalised current is constant.

    A value that does not change in time, such as a directly coded image and its currents, is computed in the first
    step. The errors it gets, times the trace of an input of 1, are summed, and go back through it in `finish`, which
    computes it once more rather than keep what its backward pass needs.

    Args:
        body: the captured graph of a spiking network.
        surrogate: of the distance to the threshold.
        timesteps: how many steps there will be. A batch norm normalises each with its own statistics; its running
            statistics move once for the whole run, by their mean over the steps.
        traces: False keeps none, so that every step learns from itself alone (SLTT).
        readout_leak: of the trace of what flows into the readout; 0 if the loss of a step sees its currents alone.
        constant: whether the frames are the same at every step.

    Raises:
        ConfigError: for neurons of which one trace cannot serve all: with a hard reset, or a leak per channel.
    """

    def __init__(
        self,
        body: fx.GraphModule,
        surrogate: Surrogate,
        timesteps: int,
        *,
        traces: bool = True,
        readout_leak: float = 0.0,
        constant: bool = False,
    ):
        graph, self.drives = _separate(body)
        super().__init__(body, graph=graph)
        self.surrogate, self.readout_leak = surrogate, readout_leak
        self.timesteps = self.steps_left = timesteps
        driven = dict.fromkeys(self.drives.values())
        self.leaks = {neurons: self._leak(neurons) if traces else 0.0 for neurons in driven}
        self.units = dict.fromkeys(self.leaks, 0.0)  # the trace of an input of 1, by the neurons it drives
        self.inputs: dict[tuple[fx.Node, fx.Node], Tensor] = {}  # traces, by the input and the neurons it drives
        self.states: dict[str, Any] = {}  # of neurons and dropouts, by name
        self.synapses: dict[str, LearningSynapse] = {}
        self.still: dict[fx.Node, Tensor] = {}  # frames that do not change
        self.held: dict[fx.Node, _Held | None] = {}  # values that do not change; None: used by such values only
        self.constant = self._constant_nodes() if constant else set()
        self.fresh: set[tuple[fx.Node, fx.Node]] = set()  # traces that know the present step
        self.seen: set[nn.Module] = set()  # batch norms that have seen the present step
        self.noted: set[nn.Module] = set()  # batch norms that have seen what does not change
        self.node: Any = None  # the one that is running

    def simulate(self, *inputs: Tensor) -> Tensor:
        """One step: frames `[1, B, ...]` to the currents into the readout, `[1, B, K]`."""
        for neurons, leak in self.leaks.items():
            self.units[neurons] = leak * self.units[neurons] + 1
        self.fresh.clear()
        self.seen.clear()
        self.steps_left -= 1
        frames = [frame[0] for frame in inputs]
        if self.constant and not self.held:
            self._hold(frames)
        present = {node: held and _Recall.apply(held.leaf, held, self._unit(node)) for node, held in self.held.items()}
        return self.run(*frames, initial_env=present).unsqueeze(0)

    def finish(self) -> None:
        """After the last step: complete the gradients in `.grad`, giving back memory on the way."""
        self.inputs.clear()
        while self.synapses:
            self.synapses.popitem()[1].finish()
        learning = {node: held for node, held in self.held.items() if held is not None and held.leaf.requires_grad}
        if learning:
            values = self._values_held()  # once more, so that what their backward pass needs was not kept all along
            torch.autograd.backward(
                [values[node] for node in learning],
                [held.error.to(values[node].dtype) for node, held in learning.items()],
            )

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        return super().run_node(n)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, SpikingNeuron):
            return self._fire(target, module, args[0])
        if isinstance(module, TemporalModule):
            values, self.states[target] = module(args[0].unsqueeze(0), self.states.get(target), self.surrogate)
            return values[0]
        if self.node in self.constant:
            with self._steady(module):
                return super().call_module(target, args, kwargs)
        if isinstance(module, SYNAPSES):
            return self._transmit(target, module, *args, **kwargs)
        learned = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        scaled = {name: Scale.apply(parameter, self._unit(self.node)) for name, parameter in learned.items()}
        with self._steady(module):
            return torch.func.functional_call(module, scaled, args, kwargs)

    @contextmanager
    def _steady(self, module: Any) -> Iterator[None]:
        """Let a batch norm's running statistics move at this step by an equal share of one update for the whole run."""
        if not isinstance(module, _BatchNorm) or not module.momentum:
            yield
            return
        whole, share = module.momentum, module.momentum / self.timesteps
        if module in self.seen or module in self.noted:  # with the same values
            module.momentum = 0.0
        elif self.node not in self.constant:
            module.momentum = share / (1 - self.steps_left * share)  # what later steps will scale down
        self.seen.add(module)
        try:
            yield
        finally:
            module.momentum = whole

    def _fire(self, name: str, neuron: SpikingNeuron, current: Tensor) -> Tensor:
        if name not in self.states:
            self.states[name] = online.start(
                neuron.initial_state(current.detach().unsqueeze(0)).membrane,
                threshold_learns=neuron.threshold.requires_grad,
                leak_learns=neuron.leak.requires_grad,
                current=current,
            )
        return online.step(
            current, neuron.threshold, neuron.leak, self.states[name], self.surrogate, kernel=neuron.kernel
        )

    def _transmit(self, name: str, module: Any, input: Tensor) -> Tensor:  # named as every synapse names it
        trace = self._trace(input.detach())
        if name not in self.synapses:
            self.synapses[name] = learning_synapse(module, input)
        return Transmit.apply(input, module.weight, module.bias, self.synapses[name], trace, self._unit(self.node))

    def _trace(self, values: Tensor) -> Tensor:
        """The trace of the running synapse's input, up to date."""
        neurons = self.drives[self.node]
        leak, key = self.leaks[neurons], (self.node.all_input_nodes[0], neurons)
        if leak == 0:
            return values
        if key not in self.inputs:
            self.inputs[key] = values.to(_summable(values), copy=True)
        elif key not in self.fresh:
            trace = self.inputs[key]
            torch.add(values.to(trace.dtype), trace, alpha=leak, out=trace)
        self.fresh.add(key)
        return self.inputs[key]

    def _unit(self, node: fx.Node) -> float:
        return self.units[self.drives[node]]

    def _leak(self, neurons: fx.Node) -> float:
        if neurons.op == "output":
            return self.readout_leak
        module = self.fetch_attr(str(neurons.target))
        if module.reset != "soft":
            raise ConfigError(
                f"finetune.method: '{neurons.target}' has a {module.reset} reset, must be soft: otherwise the trace of "
                "a synapse differs from neuron to neuron. Convert with --reset soft, or use stbp"
            )
        if module.leak.dim():
            raise ConfigError(
                f"finetune.method: '{neurons.target}' has {module.leak.numel()} leaks, must have one: "
                "the trace of a synapse serves all neurons that it feeds"
            )
        return float(module.leak.detach())

    def _constant_nodes(self) -> set[fx.Node]:
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            inputs = [source for source in node.all_input_nodes if source.op != "get_attr"]
            neuron = node.op == "call_module" and isinstance(self.fetch_attr(str(node.target)), SpikingNeuron)
            if node.op == "placeholder" or (inputs and found.issuperset(inputs) and not neuron and node.op != "output"):
                found.add(node)
        return found

    def _hold(self, frames: list[Tensor]) -> None:
        """Compute what does not change, and keep what something else uses."""
        placeholders = (node for node in self.graph.nodes if node.op == "placeholder")
        self.still = dict(zip(placeholders, frames, strict=True))
        values = self._values_held()
        self.noted = set(self.seen)
        for node in self.constant:
            self.held[node] = None if self.constant.issuperset(node.users) else _Held.of(values[node])

    def _values_held(self) -> dict[fx.Node, Any]:
        """The values that do not change, with their gradients."""
        self.env = dict(self.still)
        with torch.enable_grad():  # the first step may have no backward pass of its own
            for node in self.graph.nodes:
                if node in self.constant and node.op != "placeholder":
                    self.env[node] = self.run_node(node)
        return self.env


def _summable(value: Tensor) -> torch.dtype:
    """In what a sum over steps is kept: half precision would stop growing after some hundred steps."""
    return torch.promote_types(value.dtype, torch.float32)


@dataclass
class _Held:
    """A value that does not change in time.

    Attributes:
        leaf: the value, without what led to it.
        error: summed over the steps so far.
    """

    leaf: Tensor
    error: Tensor

    @classmethod
    def of(cls, value: Tensor) -> "_Held":
        error = torch.zeros_like(value, dtype=_summable(value))
        return cls(value.detach().requires_grad_(value.requires_grad), error)


class _Recall(torch.autograd.Function):
    """A held value in the present step; its error is summed, and does not go further."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, held: _Held, unit: float) -> Tensor:
        ctx.held, ctx.unit = held, unit
        return leaf.view_as(leaf)

    @staticmethod
    def backward(ctx: Any, *errors: Any) -> tuple[None, None, None]:
        ctx.held.error.add_(errors[0], alpha=ctx.unit)
        return None, None, None


def _separate(body: fx.GraphModule) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """The body's graph with a path of its own from spikes to each layer of neurons, and which layer each node drives.

    Paths that part only behind a synapse are doubled, since its trace goes with the leak of the neurons at the end.
    The readout counts as a layer.
    """

    def ends(node: fx.Node) -> bool:
        module = body.get_submodule(str(node.target)) if node.op == "call_module" else None
        return node.op == "output" or isinstance(module, SpikingNeuron)

    reached: dict[fx.Node, dict[fx.Node, None]] = {node: {} for node in body.graph.nodes}  # ordered sets
    for node in reversed(body.graph.nodes):
        for source in node.all_input_nodes:
            reached[source].update({node: None} if ends(node) else reached[node])

    graph = fx.Graph()
    copies: dict[tuple[fx.Node, fx.Node | None], fx.Node] = {}
    drives: dict[fx.Node, fx.Node] = {}
    for node in body.graph.nodes:
        alone = ends(node) or node.op == "placeholder"
        for neurons in [node] if alone else reached[node]:

            def copy_of(source: fx.Node, neurons: fx.Node = neurons) -> fx.Node:
                return copies.get((source, neurons)) or copies[source, None]

            copy = graph.node_copy(node, copy_of)
            copies[node, None if alone else neurons] = copy
            if node.op == "placeholder":
                drives.update(dict.fromkeys([copy], next(iter(reached[node]))))
            elif not ends(node):
                drives[copy] = neurons
    return graph, drives
