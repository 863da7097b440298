"""Gradients from traces that run forward in time, instead of a history: a backward pass for each step by itself."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hybridsnn.errors import ConfigError
from hybridsnn.kernels.neuron import Surrogate, online
from hybridsnn.kernels.synapse.learning import LearningSynapse, Scale, Transmit, learning_synapse
from hybridsnn.neurons import SpikingNeuron
from hybridsnn.program.gradients.static import return_through_static
from hybridsnn.program.graph import Node, Program
from hybridsnn.program.operations import Role
from hybridsnn.program.run import Flow, Observer, Run


@dataclass(frozen=True)
class Traces:
    """One step at a time, each with a backward pass of its own that gives its share of the whole gradient.

    Errors go back through the layers at one step only. What earlier steps contribute comes from traces, which run
    forward: each synapse has one of its input, `trace[t] = leak * trace[t-1] + x[t]`, with the leak of the neurons
    it feeds, and its weight gets `error[t] * trace[t]`. The trace of an input that is always 1 serves the biases, and
    the scale and shift of a batch norm: exact for a shift, and for a scale if the normalised current is constant.

    The errors that static values get, times the trace of an input of 1, are summed, and go back through them in
    `finish`, which computes them once more rather than keep what their backward pass needs.

    Attributes:
        surrogate: of the distance to the threshold.
        timesteps: how many steps there will be. A batch norm normalises each with its own statistics; its running
            statistics move once for the whole run, by their mean over the steps.
        traces: False keeps none, so that every step learns from itself alone (SLTT).
        readout_leak: of the trace of what flows into the readout; 0 if the loss of a step sees its currents alone.
        static: whether the frames are the same at every step.
    """

    surrogate: Surrogate
    timesteps: int
    traces: bool = True
    readout_leak: float = 0.0
    static: bool = False

    def begin(self, program: Program, states: dict[str, Any] | None = None, observe: Observer | None = None) -> Run:
        """See `Gradient`; the run goes on over all steps.

        Raises:
            ConfigError: for neurons of which one trace cannot serve all: with a hard reset, or a leak per channel.
        """
        program.refuse_hooks("learning from traces")
        assert not states  # traces start at 0
        return Run(program.separated, _TracesFlow(self, program.separated), observe=observe)

    def finish(self, run: Run) -> None:
        """After the last step: complete the gradients in `.grad`, giving back memory on the way."""
        flow = run.flow
        assert isinstance(flow, _TracesFlow)
        flow.finish(run)


class _TracesFlow(Flow):
    """What a run keeps for `Traces`."""

    goes_on = True

    def __init__(self, gradient: Traces, program: Program):
        super().__init__(gradient.surrogate)
        self.gradient = gradient
        self.learning = program.learning()
        self.steps_left = gradient.timesteps
        ends = dict.fromkeys(node.drives for node in program.nodes if node.drives is not None)
        self.leaks = {end: self._leak(end) if gradient.traces else 0.0 for end in ends}
        self.units = dict.fromkeys(self.leaks, 0.0)  # the trace of an input of 1, by the neurons it drives
        self.inputs: dict[tuple[Node, Node], Tensor] = {}  # traces, by the input and the neurons it drives
        self.synapses: dict[str, LearningSynapse] = {}
        self.fresh: set[tuple[Node, Node]] = set()  # traces that know the present step
        self.measured: set[nn.Module] = set()  # batch norms that have seen the present step
        self.measured_static: set[nn.Module] = set()  # batch norms that have seen what does not change

    def begin(self, run: Run) -> None:
        for end, leak in self.leaks.items():
            self.units[end] = leak * self.units[end] + 1
        self.fresh.clear()
        self.measured.clear()
        self.steps_left -= 1

    def static_inputs(self, run: Run, given: Any) -> list[Node]:
        return [*given] if self.gradient.static else []

    def fire(self, run: Run, node: Node, current: Tensor) -> Tensor:
        neuron = node.module
        assert isinstance(neuron, SpikingNeuron) and self.surrogate is not None
        if node.name not in run.states:
            run.states[node.name] = online.start(
                neuron.initial_state(current.detach()).membrane,
                threshold_learns=neuron.threshold.requires_grad,
                leak_learns=neuron.leak.requires_grad,
                current=current[0],
            )
        state = run.states[node.name]
        (step,) = current  # one at a time
        spikes = online.step(step, neuron.threshold, neuron.leak, state, self.surrogate, kernel=neuron.kernel)
        return spikes.unsqueeze(0)

    def transmit(self, run: Run, node: Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        if node in run.static:
            return super().transmit(run, node, args, kwargs)
        module: Any = node.module
        (values,) = (*args, *kwargs.values())
        trace = self._trace(node, values.detach())
        if node.name not in self.synapses:
            self.synapses[node.name] = learning_synapse(module, values)
        return Transmit.apply(values, module.weight, module.bias, self.synapses[node.name], trace, self._unit(node))

    def compute(self, run: Run, node: Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        static = node in run.static
        with self._one_update(node.module, static):
            if static or node.module is None:
                return super().compute(run, node, args, kwargs)
            learned = {name: each for name, each in node.module.named_parameters() if each.requires_grad}
            scaled = {name: Scale.apply(parameter, self._unit(node)) for name, parameter in learned.items()}
            return torch.func.functional_call(node.module, scaled, args, kwargs)

    def hold(self, run: Run, node: Node, value: Tensor) -> "_Held":
        learns = node in self.learning
        return _Held(value.detach().requires_grad_(learns), torch.zeros_like(value, dtype=_summable(value)))

    def recall(self, run: Run, node: Node, held: "_Held") -> Any:
        return _Recall.apply(held.leaf, held, self._unit(node))

    def finish(self, run: Run) -> None:
        """See `Traces.finish`."""
        self.inputs.clear()
        while self.synapses:
            self.synapses.popitem()[1].finish()
        return_through_static(run, {node: held.error for node, held in run.held.items() if held.leaf.requires_grad})

    @contextmanager
    def _one_update(self, module: Any, static: bool) -> Iterator[None]:
        """Let a batch norm's running statistics move at this step by an equal share of one update for the whole run."""
        if not isinstance(module, _BatchNorm) or not module.momentum:
            yield
            return
        whole, share = module.momentum, module.momentum / self.gradient.timesteps
        if module in self.measured or module in self.measured_static:  # with the same values
            module.momentum = 0.0
        elif not static:
            module.momentum = share / (1 - self.steps_left * share)  # what later steps will scale down
        (self.measured_static if static else self.measured).add(module)
        try:
            yield
        finally:
            module.momentum = whole

    def _trace(self, node: Node, values: Tensor) -> Tensor:
        """The trace of a synapse's input, up to date."""
        assert node.drives is not None
        leak, key = self.leaks[node.drives], (node.inputs[0], node.drives)
        if leak == 0:
            return values
        if key not in self.inputs:
            self.inputs[key] = values.to(_summable(values), copy=True)
        elif key not in self.fresh:
            trace = self.inputs[key]
            torch.add(values.to(trace.dtype), trace, alpha=leak, out=trace)
        self.fresh.add(key)
        return self.inputs[key]

    def _unit(self, node: Node) -> float:
        assert node.drives is not None
        return self.units[node.drives]

    def _leak(self, end: Node) -> float:
        if end.role is Role.OUTPUT:
            return self.gradient.readout_leak
        neuron = end.module
        assert isinstance(neuron, SpikingNeuron)
        if neuron.reset != "soft":
            raise ConfigError(
                f"finetune.method: '{end.name}' has a {neuron.reset} reset, must be soft: otherwise the trace of "
                "a synapse differs from neuron to neuron. Convert with --reset soft, or use stbp"
            )
        if neuron.leak.dim():
            raise ConfigError(
                f"finetune.method: '{end.name}' has {neuron.leak.numel()} leaks, must have one: "
                "the trace of a synapse serves all neurons that it feeds"
            )
        return float(neuron.leak.detach())


def _summable(value: Tensor) -> torch.dtype:
    """In what a sum over steps is kept: half precision would stop growing after some hundred steps."""
    return torch.promote_types(value.dtype, torch.float32)


@dataclass(frozen=True)
class _Held:
    """What is kept of a static value.

    Attributes:
        leaf: the value, without what led to it.
        error: summed over the steps so far.
    """

    leaf: Tensor
    error: Tensor


class _Recall(torch.autograd.Function):
    """A static value at the present step; its error is summed, and does not go further."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, held: _Held, unit: float) -> Tensor:
        ctx.held, ctx.unit = held, unit
        return leaf.view_as(leaf)

    @staticmethod
    def backward(ctx: Any, *errors: Any) -> tuple[None, None, None]:
        ctx.held.error.add_(errors[0], alpha=ctx.unit)
        return None, None, None
