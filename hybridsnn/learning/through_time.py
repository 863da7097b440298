"""Back-propagation through time that keeps one bit for each neuron and step, and works on a few steps at once."""

import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from hybridsnn.encoders import Frames, constant_in_time
from hybridsnn.kernels import pooling
from hybridsnn.kernels.neuron import Kernel, Surrogate, choose
from hybridsnn.kernels.synapse.learning import LearningSynapse, add_gradient, learning_synapse
from hybridsnn.model import SYNAPSES, Simulation
from hybridsnn.neurons import SharedDropout, SpikingNeuron, TemporalModule

# What a value's gradient passes without asking for the value: sums, means, and changes of shape.
LINEAR_MODULES = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.Flatten, nn.Unflatten, nn.Identity,
)  # fmt: skip
LINEAR_FUNCTIONS = (
    operator.add, operator.iadd, operator.sub, operator.getitem, getattr, torch.add, torch.sub, torch.flatten,
    torch.mean, torch.cat, functional.avg_pool2d, functional.adaptive_avg_pool2d,
)  # fmt: skip
LINEAR_METHODS = ("size", "view", "reshape", "flatten", "permute", "transpose", "contiguous", "mean", "sum", "add")


class ThroughTime(Simulation):
    """Runs a body over time and back, chunk by chunk of time.

    Forward, each layer of neurons leaves its spikes as bits, and its membranes too where the surrogate sees them or a
    leak learns; nothing else is kept. Backward, from the last chunk to the first, the nodes of the graph are visited
    in reverse: what a synapse learns from is made again from the bits before it, and errors go from chunk to chunk
    through the membranes. Gradients are those of the whole run at once, added to `.grad` in the backward pass.

    A value that does not change in time is computed once and held; the errors that it gets are summed over time
    and go back through it at the end.

    Args:
        body: the captured graph of a spiking network, one that `cuts_in_time` allows.
        surrogate: for the backward pass.
        chunks: how many steps are simulated at once, one number for each chunk.
    """

    def __init__(self, body: fx.GraphModule, surrogate: Surrogate, chunks: Sequence[int]):
        super().__init__(body, surrogate=surrogate)
        self.chunks = chunks
        self.frames: Tensor | Frames
        self.synapses: dict[str, LearningSynapse] = {}
        self.runs: dict[str, _Run] = {}  # of neurons, by name
        self.forms: dict[fx.Node, _Form] = {}  # of values that change in time
        self.held: dict[fx.Node, Any] = {}  # values that do not; None: used by such values only
        self.held_errors: dict[fx.Node, Tensor] = {}
        self.errors: dict[fx.Node, Tensor] = {}
        self.shared: set[fx.Node] = set()  # nodes whose errors lie in memory that others use
        self.learning = _learning_nodes(body)
        self.chunk = 0  # the one that is running
        self.autocast: AbstractContextManager[Any] = nullcontext()

    def simulate(self, *inputs: Any) -> Tensor:
        """Frames `[T, B, ...]` to what the graph makes of them, `[T, B, ...]`."""
        (self.frames,) = inputs
        device = self._device()
        if torch.is_autocast_enabled(device):
            self.autocast = torch.autocast(device, torch.get_autocast_dtype(device))
        return _Through.apply(torch.zeros((), requires_grad=True), self)

    def forward(self) -> Tensor:
        """All chunks, first to last, without gradients."""
        outputs = []
        for chunk in range(len(self.chunks)):
            self._turn_to(chunk)
            frames = self._chunk_of(self.frames)
            self.batch = frames.shape[1]
            placeholder = next(iter(self.graph.nodes))
            if chunk == 0 and constant_in_time(self.frames):
                self.constant = {placeholder}
            constant = placeholder in self.constant
            outputs.append(
                self.run(frames[0] if constant else frames.flatten(0, 1), initial_env=dict(self.held)),
            )
            if chunk == 0:
                self.held = {
                    node: None if self.constant.issuperset(node.users) else value for node, value in self.held.items()
                }
        return torch.cat(outputs)

    def backward(self, errors: Tensor) -> None:
        """All chunks, last to first, for the errors `[T, B, ...]` of the outputs."""
        for chunk in reversed(range(len(self.chunks))):
            self._turn_to(chunk)
            for node in reversed(self.graph.nodes):
                if node.op == "output":
                    self._send(node.all_input_nodes[0], self._chunk_of(errors).flatten(0, 1), shared=True)
                elif node in self.learning:
                    self._return(node, self.errors.pop(node, None))
            for run in self.runs.values():
                run.forget(chunk)
        while self.synapses:
            self.synapses.popitem()[1].finish()
        self._return_through_constant_nodes()

    # Forward.

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.constant:
            self.held.setdefault(n, value)
        elif isinstance(value, Tensor):
            self.forms[n] = _Form.of(value)
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, SpikingNeuron):
            return self._fire(target, module, args[0])
        if isinstance(module, SYNAPSES) and self.node not in self.constant:
            (values,) = (*args, *kwargs.values())
            if target not in self.synapses:
                self.synapses[target] = learning_synapse(module, values, many=True)
            return self.synapses[target].forward(values)
        return super().call_module(target, args, kwargs)

    def _fire(self, name: str, neuron: SpikingNeuron, current: Tensor) -> Tensor:
        if name not in self.runs:
            self.runs[name] = _Run(neuron, choose(neuron.kernel, current, self.surrogate))
            self.states[name] = neuron.initial_state(current)
        state, last = self.states.pop(name), self.is_last_use()
        spikes, state = self.runs[name].fire(current, state, self.surrogate, overwrite=last)
        if self.chunk + 1 < len(self.chunks):
            self.states[name] = state
        return spikes.flatten(0, 1)

    # Backward.

    def _return(self, node: fx.Node, error: Tensor | None) -> None:
        """Send the error of a node on to its inputs, and learn from it."""
        if error is None or node in self.constant:
            return
        if _calls(self.module, node, SpikingNeuron):
            self._return_through_neurons(node, error)
        elif _calls(self.module, node, SYNAPSES):
            (source,) = node.all_input_nodes
            values = self._presented(source)
            passed = self.synapses[str(node.target)].backward(error, values, 1.0, source in self.learning)
            if passed is not None:
                self._send(source, passed)
        else:
            self._return_through_any(node, error)

    def _return_through_neurons(self, node: fx.Node, error: Tensor) -> None:
        run, alone = self.runs[str(node.target)], node not in self.shared
        assert self.surrogate is not None
        error = error.unflatten(0, (self.timesteps, -1))
        entering = run.backward(self.chunk, error, self.surrogate, overwrite=alone)
        self._send(node.all_input_nodes[0], entering.flatten(0, 1))

    def _return_through_any(self, node: fx.Node, error: Tensor) -> None:
        """By automatic differentiation of the one node, from the values of its inputs made again."""
        if _calls(self.module, node, nn.AvgPool2d):
            (source,) = node.all_input_nodes
            window = _tiles(self.fetch_attr(str(node.target)), self.forms[source].shape, error.shape[1:])
            if window is not None:
                self._send(source, pooling.spread(error, *window))
                return
        if _calls(self.module, node, SharedDropout):  # errors are dropped as values are
            (source,) = node.all_input_nodes
            dropout, mask = self.fetch_attr(str(node.target)), self.states.get(str(node.target))
            passed, _ = dropout(error.unflatten(0, (self.timesteps, -1)), mask)
            self._send(source, passed.flatten(0, 1), shared=node in self.shared)
            return
        value_of = self._blank if self._is_linear(node) else self._value
        inputs = {source: value_of(source) for source in node.all_input_nodes if source.op != "get_attr"}
        leaves = {
            source: value.detach().requires_grad_()
            for source, value in inputs.items()
            if source in self.learning and isinstance(value, Tensor)
        }
        module = self.fetch_attr(str(node.target)) if node.op == "call_module" else nn.Identity()
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        with torch.enable_grad(), self.autocast:
            result = self._run_on(node, inputs | leaves)
        gradients = torch.autograd.grad(result, [*leaves.values(), *parameters], error, allow_unused=True)
        for source, gradient in zip(leaves, gradients[: len(leaves)], strict=True):
            if gradient is not None:
                repeats = 0 in gradient.stride()  # one number for many, as the errors of what was summed
                self._send(source, gradient, shared=node in self.shared or len(leaves) > 1 or repeats)
        for parameter, gradient in zip(parameters, gradients[len(leaves) :], strict=True):
            if gradient is not None:
                add_gradient(parameter, gradient)

    def _return_through_constant_nodes(self) -> None:
        """The summed errors of values that do not change, through what made them."""
        if not self.held_errors:
            return
        frames = self.frames[:1][0]
        self.env = {next(iter(self.graph.nodes)): frames}
        with torch.enable_grad(), self.autocast:
            for node in self.graph.nodes:
                if _is_attr(node) or (node in self.constant and node.op != "placeholder"):
                    self.env[node] = super().run_node(node)
        made = {node: self.env[node] for node in self.held_errors}
        torch.autograd.backward(list(made.values()), [self.held_errors[node].to(made[node].dtype) for node in made])

    def _send(self, node: fx.Node, error: Tensor, *, shared: bool = False) -> None:
        """Add to the error of a node; the error `[T*B, ...]` or, of one that does not change, `[B, ...]`.

        `shared` says that something else uses its memory.
        """
        if node not in self.learning:
            return
        errors = self.errors
        if node in self.constant:
            errors = self.held_errors
            wide = torch.promote_types(error.dtype, torch.float32)  # or a sum over many chunks would stop growing
            if len(error) == len(self.held[node]):
                error = error.to(wide)
            else:
                error = error.unflatten(0, (self.timesteps, -1)).sum(0, dtype=wide)
        if node in errors:
            errors[node], shared = errors[node] + error, False
        else:
            errors[node] = error
        (self.shared.add if shared else self.shared.discard)(node)

    def _value(self, node: fx.Node) -> Any:
        """The value of a node in this chunk, made again from the bits of the neurons before it."""
        if node in self.held:
            return self.held[node]
        if node.op == "placeholder":
            return self._chunk_of(self.frames).flatten(0, 1)
        if _calls(self.module, node, SpikingNeuron):
            return self.runs[str(node.target)].spikes(self.chunk).flatten(0, 1)
        if _calls(self.module, node, nn.AvgPool2d) and _calls(self.module, node.all_input_nodes[0], SpikingNeuron):
            pooled = self._pooled(node)
            if pooled is not None:
                return pooled
        inputs = {source: self._value(source) for source in node.all_input_nodes if source.op != "get_attr"}
        with torch.no_grad(), self.autocast:
            return self._run_on(node, inputs)

    def _pooled(self, node: fx.Node) -> Tensor | None:
        """The value of an average pool of spikes from their bits, without unpacking them; None if that cannot be."""
        (source,) = node.all_input_nodes
        form, record = self.forms[node], self.runs[str(source.target)].records[self.chunk]
        window = _tiles(self.fetch_attr(str(node.target)), self.forms[source].shape, form.shape)
        if window is None or form.memory_format != torch.channels_last:
            return None
        means = pooling.of_bits(record.bits, record.steps, form.dtype, *window)
        return None if means is None else means.flatten(0, 1)

    def _blank(self, node: fx.Node) -> Any:
        """Something of the form of a node's value, or, if it is no tensor, its value."""
        if node in self.held:
            return self.held[node]
        if node in self.forms:
            return self.forms[node].empty(self.timesteps * self.batch)
        return self._run_on(node, {source: self._blank(source) for source in node.all_input_nodes})

    def _presented(self, node: fx.Node) -> Tensor:
        """The value of a node for each step and sample, `[T*B, ...]`."""
        value: Tensor = self._value(node)
        return value.expand(self.timesteps, *value.shape).flatten(0, 1) if node in self.constant else value

    def _run_on(self, node: fx.Node, inputs: dict[fx.Node, Any]) -> Any:
        """Run one node on values of its inputs."""
        attributes = [source for source in node.all_input_nodes if _is_attr(source)]
        self.env = inputs | {source: self.fetch_attr(str(source.target)) for source in attributes}
        value = super().run_node(node)
        self.env = {}
        return value

    def _turn_to(self, chunk: int) -> None:
        self.chunk, self.timesteps = chunk, self.chunks[chunk]

    def _chunk_of(self, values: Tensor | Frames) -> Tensor:
        """The steps of this chunk, of values `[T, B, ...]`."""
        start = sum(self.chunks[: self.chunk])
        return values[start : start + self.timesteps]

    def _is_linear(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return _calls(self.module, node, LINEAR_MODULES)
        return node.target in (LINEAR_FUNCTIONS if node.op == "call_function" else LINEAR_METHODS)

    def _device(self) -> str:
        return next(self.module.parameters()).device.type


class _Through(torch.autograd.Function):
    """A run as one operation, so that the loss and whatever else comes after it are differentiated as usual."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, simulation: ThroughTime) -> Tensor:
        ctx.simulation = simulation
        return simulation.forward()

    @staticmethod
    def backward(ctx: Any, *errors: Any) -> tuple[None, None]:
        ctx.simulation.backward(errors[0])
        return None, None


@dataclass(frozen=True)
class _Form:
    """What a value `[T*B, ...]` looks like, for any T and B."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    memory_format: torch.memory_format

    @classmethod
    def of(cls, value: Tensor) -> "_Form":
        last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
        order = torch.channels_last if last else torch.contiguous_format
        return cls(value.shape[1:], value.dtype, value.device, order)

    def empty(self, count: int) -> Tensor:
        return torch.empty((count, *self.shape), dtype=self.dtype, device=self.device, memory_format=self.memory_format)


@dataclass(frozen=True)
class _Record:
    """What a chunk leaves of a layer of neurons."""

    steps: int
    dtype: torch.dtype
    bits: Tensor
    potentials: Tensor | None
    membrane: Tensor | None  # at the start


class _Run:
    """A layer of neurons over time and back."""

    def __init__(self, neuron: SpikingNeuron, kernel: Kernel):
        self.neuron, self.kernel = neuron, kernel
        self.since_spike: Tensor  # at the start
        self.records: list[_Record] = []
        self.carried: Tensor | None = None  # the error of the membrane at the end of the chunk
        self.clock: Tensor | None = None  # steps since the last spike, at the start of the chunk that comes after

    def fire(self, current: Tensor, state: Any, surrogate: Surrogate | None, *, overwrite: bool) -> tuple[Tensor, Any]:
        """Currents `[T, B, *N]` to spikes and the next state."""
        neuron, learns_leak = self.neuron, self.neuron.leak.requires_grad
        if not self.records:
            self.since_spike = state.since_spike
        assert surrogate is not None
        spikes, membrane, _, bits, potentials = self.kernel.forward(
            current.detach(), neuron.threshold.detach(), neuron.leak.detach(), *state, neuron.reset == "hard",
            pack=True, potentials=surrogate.needs_membrane or learns_leak, overwrite=overwrite,
        )  # fmt: skip
        assert bits is not None
        start = state.membrane if learns_leak else None
        self.records.append(_Record(len(current), spikes.dtype, bits, potentials, start))
        return spikes, type(state)(membrane, self.since_spike)  # clocks can be had from the bits

    def spikes(self, chunk: int) -> Tensor:
        """The spikes `[T, B, *N]` of a chunk."""
        record = self.records[chunk]
        return self.kernel.unpack(record.bits, record.steps, record.dtype)

    def backward(self, chunk: int, error: Tensor, surrogate: Surrogate, *, overwrite: bool) -> Tensor:
        """The errors `[T, B, *N]` of a chunk's spikes to those of its currents."""
        neuron, record = self.neuron, self.records[chunk]
        clock = self._clock(chunk) if surrogate.needs_clock else self.since_spike
        error, carried, by_threshold, by_leak = self.kernel.backward(
            error, self.carried, record.bits, record.potentials, neuron.threshold.detach(), neuron.leak.detach(),
            record.membrane, clock, neuron.reset == "hard", surrogate,
            learns_threshold=neuron.threshold.requires_grad, learns_leak=neuron.leak.requires_grad,
            overwrite=overwrite,
        )  # fmt: skip
        self.carried = carried if chunk > 0 else None
        for parameter, gradient in ((neuron.threshold, by_threshold), (neuron.leak, by_leak)):
            if gradient is not None:
                add_gradient(parameter, gradient)
        return error

    def _clock(self, chunk: int) -> Tensor:
        """Steps from the last spike to the first step of a chunk, from the bits of earlier ones."""
        earlier = [(record.bits, record.steps) for record in self.records[:chunk]]
        if self.clock is None:  # the last chunk comes first
            self.clock = self.since_spike
            for bits, steps in earlier:
                self.clock = self.kernel.advance(self.clock, bits, steps)
        else:
            record = self.records[chunk]
            self.clock = self.kernel.rewind(self.clock, record.bits, record.steps, earlier, self.since_spike)
        return self.clock

    def forget(self, chunk: int) -> None:
        """Give back the memory of a chunk that is done."""
        del self.records[chunk:]


def cuts_in_time(body: fx.GraphModule) -> bool:
    """Whether a run may be cut into chunks: no module draws anew or measures all steps together in training."""
    for module in body.modules():
        if isinstance(module, _BatchNorm | _DropoutNd) and module.training:
            return False
        if isinstance(module, TemporalModule) and not isinstance(module, SpikingNeuron | SharedDropout):
            return False
    placeholders = sum(node.op == "placeholder" for node in body.graph.nodes)
    loose = any(_is_attr(node) and _requires_grad(body, str(node.target)) for node in body.graph.nodes)
    return placeholders == 1 and not loose


def _tiles(pool: Any, inputs: torch.Size, outputs: torch.Size) -> tuple[int, int] | None:
    """The window of an average pool `[C, H, W]` to `[C, H, W]`; None if windows overlap or do not tile the picture."""
    high, wide = (pool.kernel_size,) * 2 if isinstance(pool.kernel_size, int) else pool.kernel_size
    plain = pool.stride in (pool.kernel_size, (high, wide)) and pool.padding in (0, (0, 0))
    whole = len(outputs) == 3 and tuple(inputs) == (outputs[0], outputs[1] * high, outputs[2] * wide)
    return (high, wide) if plain and whole and pool.divisor_override is None else None


def _learning_nodes(body: fx.GraphModule) -> set[fx.Node]:
    """The nodes at or before which something learns."""
    found: set[fx.Node] = set()
    for node in body.graph.nodes:
        module = body.get_submodule(str(node.target)) if node.op == "call_module" else nn.Identity()
        learns = any(parameter.requires_grad for parameter in module.parameters())
        if node.op != "output" and (learns or not found.isdisjoint(node.all_input_nodes)):
            found.add(node)
    return found


def _calls(body: nn.Module, node: fx.Node, kinds: Any) -> bool:
    return node.op == "call_module" and isinstance(body.get_submodule(str(node.target)), kinds)


def _is_attr(node: fx.Node) -> bool:
    return node.op == "get_attr"


def _requires_grad(body: fx.GraphModule, name: str) -> bool:
    owner, _, attribute = name.rpartition(".")
    return bool(getattr(getattr(body.get_submodule(owner), attribute), "requires_grad", False))
