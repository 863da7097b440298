"""Gradients of firing rates: one backward pass, through the network of mean values over time."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from hybridsnn.encoders import Frames
from hybridsnn.kernels.neuron import Surrogate, choose
from hybridsnn.neurons import NeuronState, SpikingNeuron
from hybridsnn.program.graph import Node, Program
from hybridsnn.program.run import Flow, Observer, Run


@dataclass(frozen=True)
class Rates:
    """Rate-based back-propagation (Yu et al., NeurIPS 2024), for networks whose weights learn.

    Forward, each layer of neurons leaves two numbers a neuron: its rate, the mean of its spikes, and

        e = mean over t of kappa[t] * slope(U[t]),   kappa[0] = 1, kappa[t+1] = 1 + leak * kappa[t],

    what its rate changes by when its current does at every step, the reset taken as given (with a hard reset too).
    `mean` then runs the network once on the mean input, each layer giving its rate with the derivative e, so that
    automatic differentiation of it takes the memory and time of one step of an ANN.

    A batch norm in training normalises the spikes of a chunk by the chunk's statistics, and their means by those of
    the means; its running statistics see the chunks alone.

    Attributes:
        surrogate: of the distance to the threshold.
        static: whether the frames are the same at every step.
    """

    surrogate: Surrogate
    static: bool = False

    def begin(self, program: Program, states: dict[str, Any] | None = None, observe: Observer | None = None) -> Run:
        """See `Gradient`; the run goes on over all steps, without gradients."""
        assert not states  # rates are of the whole run
        return Run(program, _RatesFlow(self), observe=observe)

    def mean(self, run: Run) -> Tensor:
        """After the last step: the mean current into the readout `[B, K]`, which has the gradients."""
        flow = run.flow
        assert isinstance(flow, _RatesFlow)
        return flow.mean(run)


class _RatesFlow(Flow):
    """What a run keeps for `Rates`."""

    goes_on = True

    def __init__(self, gradient: Rates):
        super().__init__(None)
        self.gradient = gradient
        self.steps = 0  # so far
        self.frames: Tensor  # their sum, `[B, ...]`
        self.layers: dict[str, _Sums] = {}
        self.autocast: AbstractContextManager[Any] = nullcontext()

    def simulate(self, run: Run, inputs: Sequence[Tensor | Frames]) -> Tensor:
        (chunk,) = (values[:] for values in inputs)
        device = chunk.device.type
        if torch.is_autocast_enabled(device):
            self.autocast = torch.autocast(device, torch.get_autocast_dtype(device))
        total = chunk[0] * len(chunk) if self.gradient.static else chunk.sum(0)
        self.frames = self.frames + total if self.steps else total
        self.steps += len(chunk)
        with torch.no_grad():
            return super().simulate(run, (chunk,))

    def static_inputs(self, run: Run, given: Mapping[Node, Any]) -> list[Node]:
        return [*given] if self.gradient.static else []

    def fire(self, run: Run, node: Node, current: Tensor) -> Tensor:
        neuron = node.module
        assert isinstance(neuron, SpikingNeuron)
        before = run.states.get(node.name) or neuron.initial_state(current)
        spikes, membrane, since_spike, _, potentials = choose(neuron.kernel, current).forward(
            current, neuron.threshold.detach(), neuron.leak.detach(), *before, neuron.reset == "hard",
            potentials=True, overwrite=run.is_last_use(node),
        )  # fmt: skip
        run.states[node.name] = NeuronState(membrane, since_spike)
        if node.name not in self.layers:
            self.layers[node.name] = _Sums(torch.zeros_like(membrane), torch.zeros_like(membrane))
        self.layers[node.name].add(spikes, potentials, neuron, self.gradient.surrogate)
        return spikes

    def mean(self, run: Run) -> Tensor:
        """See `Rates.mean`."""
        masks = {name: state for name, state in run.states.items() if name not in self.layers}
        norms = [module for module in run.program.body.modules() if isinstance(module, _BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        try:
            for norm in norms:
                norm.momentum = 0.0
            with torch.enable_grad(), self.autocast:
                (currents,) = Run(run.program, _MeanFlow(self), states=masks).simulate((self.frames / self.steps)[None])
            return currents
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


class _Sums:
    """What the steps so far leave of a layer.

    Attributes:
        spikes: their number `[B, *N]`.
        slopes: kappa times the slope of a spike, summed over the steps, `[B, *N]`.
        kappa: of the step before.
    """

    def __init__(self, spikes: Tensor, slopes: Tensor):
        self.spikes, self.slopes, self.kappa = spikes, slopes, 0.0

    def add(self, spikes: Tensor, potentials: Tensor | None, neuron: SpikingNeuron, surrogate: Surrogate) -> None:
        """Add the spikes and the potentials before the reset `[T, B, *N]` of some steps."""
        assert potentials is not None
        level = neuron.threshold.detach().to(potentials.dtype)
        if level.dim() == 1:
            level = level.view(-1, *[1] * (potentials.dim() - 3))
        leak, never = float(neuron.leak), torch.zeros((), device=level.device)  # no slope in time
        for potential, fired in zip(potentials, spikes, strict=True):
            self.kappa = 1 + leak * self.kappa
            self.slopes.add_(surrogate.slope(potential, level, never), alpha=self.kappa)
            self.spikes.add_(fired)


class _MeanFlow(Flow):
    """The network of mean values: each layer gives the rates that it had, whatever its mean current."""

    def __init__(self, rates: _RatesFlow):
        super().__init__(None)
        self.rates = rates

    def static_inputs(self, run: Run, given: Mapping[Node, Any]) -> list[Node]:
        return []

    def fire(self, run: Run, node: Node, current: Tensor) -> Tensor:
        sums, steps = self.rates.layers[node.name], self.rates.steps
        return _AtRate.apply(current, sums.spikes / steps, sums.slopes / steps)


class _AtRate(torch.autograd.Function):
    """A rate that was measured; backward, its derivative by the mean current."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, rate: Tensor, derivative: Tensor) -> Tensor:
        ctx.save_for_backward(derivative)
        return rate.unsqueeze(0).to(current.dtype)

    @staticmethod
    def backward(ctx: Any, *errors: Any) -> tuple[Tensor, None, None]:
        (derivative,) = ctx.saved_tensors
        return (errors[0] * derivative).to(errors[0].dtype), None, None
