"""Back-propagation through time that keeps one bit for each neuron and step, and works on a few steps at once."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from hybridsnn.encoders import Frames
from hybridsnn.kernels import pooling
from hybridsnn.kernels.neuron import Kernel, Surrogate, choose
from hybridsnn.kernels.synapse.learning import LearningSynapse, add_gradient
from hybridsnn.kernels.synapse.learning_ways import learning_synapse
from hybridsnn.neurons import SharedDropout, SpikingNeuron, TemporalModule
from hybridsnn.program.gradients.static import return_through_static
from hybridsnn.program.graph import Node, Program, attribute
from hybridsnn.program.operations import Role
from hybridsnn.program.run import Flow, Observer, Run


@dataclass(frozen=True)
class Bits:
    """Back-propagation through time, chunk by chunk.

    Forward, each layer of neurons leaves its spikes as bits, and its membranes too where the surrogate sees them or a
    leak learns; nothing else is kept. Backward, from the last chunk to the first, the nodes of the program are visited
    in reverse: what a synapse learns from is made again from the bits before it, and errors go from chunk to chunk
    through the membranes. Gradients are those of the whole run at once, added to `.grad` in the backward pass.

    A run starts from the initial state, and its program is one that `can_run_in_chunks` allows.

    Attributes:
        surrogate: stands in for the derivative of a spike.
        chunks: how many steps run at once, for each chunk.
    """

    surrogate: Surrogate
    chunks: tuple[int, ...]

    def begin(self, program: Program, states: dict[str, Any] | None = None, observe: Observer | None = None) -> Run:
        """See `Gradient`."""
        program.refuse_hooks("learning through time")
        assert not states  # its backward pass begins at the last step of this run
        return Run(program, _BitsFlow(self, program), observe=observe)


def can_run_in_chunks(body: fx.GraphModule) -> bool:
    """Whether a run may be cut into chunks: no module draws anew or measures all steps together in training."""
    for module in body.modules():
        if isinstance(module, _BatchNorm | _DropoutNd) and module.training:
            return False
        if isinstance(module, TemporalModule) and not isinstance(module, SpikingNeuron | SharedDropout):
            return False
    placeholders = sum(node.op == "placeholder" for node in body.graph.nodes)
    attributes = (attribute(body, str(node.target)) for node in body.graph.nodes if node.op == "get_attr")
    return placeholders == 1 and not any(value.requires_grad for value in attributes)


class _BitsFlow(Flow):
    """What a run keeps for `Bits`, and its way back."""

    def __init__(self, gradient: Bits, program: Program):
        super().__init__(gradient.surrogate)
        self.chunks = gradient.chunks
        self.learning = program.learning()
        self.frames: Tensor | Frames
        self.synapses: dict[str, LearningSynapse] = {}
        self.layers: dict[str, _Layer] = {}
        self.forms: dict[Node, _Form] = {}  # of values that change in time
        self.errors: dict[Node, Tensor] = {}
        self.static_errors: dict[Node, Tensor] = {}
        self.shared: set[Node] = set()  # nodes whose errors lie in memory that others use
        self.chunk = 0  # the one that is on its way back
        self.autocast: AbstractContextManager[Any] = nullcontext()

    # Forward.

    def simulate(self, run: Run, inputs: Any) -> Tensor:
        (self.frames,) = inputs
        device = next(run.program.body.parameters()).device.type
        if torch.is_autocast_enabled(device):
            self.autocast = torch.autocast(device, torch.get_autocast_dtype(device))
        return cast(Tensor, _Through.apply(torch.zeros((), requires_grad=True), self, run))

    def transmit(self, run: Run, node: Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        if node in run.static:
            return super().transmit(run, node, args, kwargs)
        (values,) = (*args, *kwargs.values())
        if node.name not in self.synapses:
            assert node.module is not None
            self.synapses[node.name] = learning_synapse(node.module, values, many=True)
        return self.synapses[node.name].forward(values)

    def fire(self, run: Run, node: Node, current: Tensor) -> Tensor:
        neuron = node.module
        assert isinstance(neuron, SpikingNeuron) and self.surrogate is not None
        if node.name not in self.layers:
            self.layers[node.name] = _Layer(neuron, choose(neuron.kernel, current, self.surrogate))
            run.states[node.name] = neuron.initial_state(current, self.surrogate)
        layer, state = self.layers[node.name], run.states.pop(node.name)
        spikes, state = layer.fire(current, state, self.surrogate, overwrite=run.is_last_use(node))
        if len(layer.records) < len(self.chunks):
            run.states[node.name] = state
        return spikes

    def note(self, run: Run, node: Node, value: Any) -> None:
        if isinstance(value, Tensor):
            self.forms[node] = _Form.of(value)

    # Backward.

    def backward(self, run: Run, errors: Tensor) -> None:
        """All chunks, last to first, for the errors `[T, B, ...]` of the outputs."""
        for chunk in reversed(range(len(self.chunks))):
            self.chunk, run.timesteps = chunk, self.chunks[chunk]
            for node in reversed(run.nodes):
                if node.role is Role.OUTPUT:
                    self._send(run, node.inputs[0], self._chunk_of(errors).flatten(0, 1), shared=True)
                elif node in self.learning and node not in run.static:
                    error = self.errors.pop(node, None)
                    if error is not None:
                        self._return(run, node, error)
            for layer in self.layers.values():
                layer.forget(chunk)
        while self.synapses:
            self.synapses.popitem()[1].finish()
        with self.autocast:
            return_through_static(run, self.static_errors)

    def _return(self, run: Run, node: Node, error: Tensor) -> None:
        """Send the error of a node on to its inputs, and learn from it."""
        alone = node not in self.shared
        if node.role is Role.NEURON:
            assert self.surrogate is not None
            error = error.unflatten(0, (run.timesteps, -1))
            entering = self.layers[node.name].backward(self.chunk, error, self.surrogate, overwrite=alone)
            self._send(run, node.inputs[0], entering.flatten(0, 1))
        elif node.role is Role.SYNAPSE:
            (source,) = node.inputs
            values = self._presented(run, source)
            passed = self.synapses[node.name].backward(error, values, 1.0, source in self.learning)
            if passed is not None:
                self._send(run, source, passed)
        elif isinstance(node.module, SharedDropout):  # errors are dropped as values are
            passed, _ = node.module(error.unflatten(0, (run.timesteps, -1)), run.states.get(node.name))
            self._send(run, node.inputs[0], passed.flatten(0, 1), shared=not alone)
        elif isinstance(node.module, nn.AvgPool2d) and self._return_through_pool(run, node, error):
            return
        else:
            self._return_through_any(run, node, error)

    def _return_through_pool(self, run: Run, node: Node, error: Tensor) -> bool:
        (source,) = node.inputs
        window = pooling.window_of(node.module, self.forms[source].shape, error.shape[1:])
        if window is not None:
            self._send(run, source, pooling.spread(error, *window))
        return window is not None

    def _return_through_any(self, run: Run, node: Node, error: Tensor) -> None:
        """By automatic differentiation of the one node, from the values of its inputs made again."""
        value_of = self._blank if node.linear else self._value
        inputs = {source: value_of(run, source) for source in node.inputs}
        leaves = {
            source: value.detach().requires_grad_()
            for source, value in inputs.items()
            if source in self.learning and isinstance(value, Tensor)
        }
        module = nn.Identity() if node.module is None else node.module
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        with torch.enable_grad(), self.autocast:
            result = run.evaluate(node, inputs | leaves)
        gradients = torch.autograd.grad(result, [*leaves.values(), *parameters], error, allow_unused=True)
        for source, gradient in zip(leaves, gradients[: len(leaves)], strict=True):
            if gradient is not None:
                repeats = 0 in gradient.stride()  # one number for many, as the errors of what was summed
                self._send(run, source, gradient, shared=node in self.shared or len(leaves) > 1 or repeats)
        for parameter, gradient in zip(parameters, gradients[len(leaves) :], strict=True):
            if gradient is not None:
                add_gradient(parameter, gradient)

    def _send(self, run: Run, node: Node, error: Tensor, *, shared: bool = False) -> None:
        """Add to the error of a node; the error `[T*B, ...]` or, of one that is static, `[B, ...]`.

        `shared` says that something else uses its memory.
        """
        if node not in self.learning:
            return
        errors = self.errors
        if node in run.static:
            errors = self.static_errors
            wide = torch.promote_types(error.dtype, torch.float32)  # or a sum over many chunks would stop growing
            if len(error) == len(run.held[node]):
                error = error.to(wide)
            else:
                error = error.unflatten(0, (run.timesteps, -1)).sum(0, dtype=wide)
        if node in errors:
            errors[node], shared = errors[node] + error, False
        else:
            errors[node] = error
        (self.shared.add if shared else self.shared.discard)(node)

    def _value(self, run: Run, node: Node) -> Any:
        """The value of a node in this chunk, made again from the bits of the neurons before it."""
        if node in run.held:
            return run.held[node]
        if node.role is Role.INPUT:
            return self._chunk_of(self.frames).flatten(0, 1)
        if node.role is Role.NEURON:
            return self.layers[node.name].spikes(self.chunk).flatten(0, 1)
        if isinstance(node.module, nn.AvgPool2d) and node.inputs[0].role is Role.NEURON:
            pooled = self._pooled(node)
            if pooled is not None:
                return pooled
        inputs = {source: self._value(run, source) for source in node.inputs}
        with torch.no_grad(), self.autocast:
            return run.evaluate(node, inputs)

    def _pooled(self, node: Node) -> Tensor | None:
        """The value of an average pool of spikes from their bits, without unpacking them; None if that cannot be."""
        (source,) = node.inputs
        form, record = self.forms[node], self.layers[source.name].records[self.chunk]
        window = pooling.window_of(node.module, self.forms[source].shape, form.shape)
        if window is None or form.memory_format != torch.channels_last:
            return None
        means = pooling.of_bits(record.bits, record.steps, form.dtype, *window)
        return None if means is None else means.flatten(0, 1)

    def _blank(self, run: Run, node: Node) -> Any:
        """Something of the form of a node's value, or, if it is no tensor, its value."""
        if node in run.held:
            return run.held[node]
        if node in self.forms:
            return self.forms[node].empty(run.timesteps * run.batch)
        return run.evaluate(node, {source: self._blank(run, source) for source in node.inputs})

    def _presented(self, run: Run, node: Node) -> Tensor:
        """The value of a node for each step and sample, `[T*B, ...]`."""
        value: Tensor = self._value(run, node)
        return value.expand(run.timesteps, *value.shape).flatten(0, 1) if node in run.static else value

    def _chunk_of(self, values: Tensor | Frames) -> Tensor:
        """The steps of the chunk that is on its way back, of values `[T, B, ...]`."""
        start = sum(self.chunks[: self.chunk])
        return values[start : start + self.chunks[self.chunk]]


class _Through(torch.autograd.Function):
    """A run as one operation, so that the loss and whatever else comes after it are differentiated as usual."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, flow: _BitsFlow, run: Run) -> Tensor:
        ctx.flow, ctx.run = flow, run
        return run.in_chunks((flow.frames,), flow.chunks)

    @staticmethod
    def backward(ctx: Any, *errors: Any) -> tuple[None, None, None]:
        ctx.flow.backward(ctx.run, errors[0])
        return None, None, None


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


class _Layer:
    """A layer of neurons over time and back."""

    def __init__(self, neuron: SpikingNeuron, kernel: Kernel):
        self.neuron, self.kernel = neuron, kernel
        self.since_spike: Tensor  # at the start
        self.records: list[_Record] = []
        self.carried: Tensor | None = None  # the error of the membrane at the end of the chunk
        self.clock: Tensor | None = None  # steps since the last spike, at the start of the chunk that comes after

    def fire(self, current: Tensor, state: Any, surrogate: Surrogate, *, overwrite: bool) -> tuple[Tensor, Any]:
        """Currents `[T, B, *N]` to spikes and the next state."""
        neuron, learns_leak = self.neuron, self.neuron.leak.requires_grad
        if not self.records:
            self.since_spike = state.since_spike
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
