"""A spiking network as a whole: an encoder, a body in which only neurons see time, an accumulating readout."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from hybridsnn.encoders import Encoder, Frames
from hybridsnn.errors import ConfigError
from hybridsnn.neurons import SpikingNeuron
from hybridsnn.program.gradients import Automatic, Gradient
from hybridsnn.program.graph import Program
from hybridsnn.program.run import Observer, Run
from hybridsnn.surrogates import Surrogate


class ModelState:
    """What a network carries from one chunk of time to the next.

    It is no tuple or dataclass: what wraps a model to change the precision of its outputs leaves it as it is.

    Attributes:
        modules: the state of each module that sees time, by name: NeuronState, or the mask of a dropout.
        readout: accumulated output, float64 `[B, K]`.
        steps: how many have run.
        run: where gradients come from traces, the run that holds them; it is changed by each step. Otherwise None.
    """

    def __init__(self, modules: dict[str, Any], readout: Tensor, steps: int, run: Run | None = None):
        self.modules, self.readout, self.steps, self.run = modules, readout, steps, run

    def of(self, images: Tensor) -> "ModelState":
        """The state of some of the images alone, which are given by a mask or by their places."""
        modules = {name: _of(state, images) for name, state in self.modules.items()}
        return ModelState(modules, self.readout[images], self.steps)


def _of(state: Any, images: Tensor) -> Any:
    """A module's state of some of the images: a tensor `[B, ...]`, several, or None of a dropout that drops nothing."""
    if state is None:
        return None
    return state[images] if isinstance(state, Tensor) else type(state)(*(part[images] for part in state))


class Outputs(NamedTuple):
    """What a run gives.

    Attributes:
        currents: what flows into the readout at each step, `[T, B, K]`.
        readout: accumulated up to each step, float64 `[T, B, K]`.
        state: to go on with.
    """

    currents: Tensor
    readout: Tensor
    state: ModelState


class SpikingModel(nn.Module):
    """A spiking network.

    Args:
        body: a captured graph whose nonlinearities are `SpikingNeuron`s; synapses see `[T*B, ...]`.
        encoder: how images become the frames it is run on.
        readout_leak: what the readout keeps of itself from one step to the next; 1 accumulates everything.
        readout_from: the first step, from 1, whose output is read; earlier ones take time all the same.
        pre_steps: number of steps, the first of all, after which membranes start again and neurons stay silent that
            they show to have an activation of 0 (`SpikingNeuron.restart`). Their output is not read.
    """

    def __init__(
        self,
        body: fx.GraphModule,
        encoder: Encoder,
        *,
        readout_leak: float = 1.0,
        readout_from: int = 1,
        pre_steps: int = 0,
    ):
        super().__init__()
        self.body = body
        self.encoder = encoder
        self.readout_leak = readout_leak
        self.readout_from = readout_from
        self.pre_steps = pre_steps
        self._program: Program | None = None

    @property
    def program(self) -> Program:
        """The body, compiled; anew if its graph or one of its modules was exchanged."""
        if self._program is None or not self._program.describes(self.body):
            self._program = Program(self.body)
        return self._program

    @property
    def neurons(self) -> dict[str, SpikingNeuron]:
        """The layers of neurons by name, in the order in which they run."""
        return {node.name: node.module for node in self.program.neurons if isinstance(node.module, SpikingNeuron)}

    @property
    def first_answer(self) -> int:
        """The first step, from 1, that reaches the readout."""
        return max(self.readout_from, self.pre_steps + 1)

    def value_bytes(self) -> int:
        """Bytes of a number that a synapse gives, at the precision that is in force."""
        device = next(self.parameters()).device.type
        half = torch.is_autocast_enabled(device)
        return (torch.get_autocast_dtype(device) if half else torch.float32).itemsize

    def forward(
        self,
        frames: Tensor,
        state: ModelState | None = None,
        *,
        surrogate: Surrogate | None = None,
        observe: Observer | None = None,
    ) -> tuple[Tensor, ModelState]:
        """Run over time. T steps at once equal a steps and then b steps with the state handed on.

        Args:
            frames: `[T, B, ...]`; stride 0 along `T` says that they do not change, and computes their synapse once.
            state: where an earlier call ended; None starts a run.
            surrogate: how gradients pass spikes; None gives no gradient.
            observe: called with each layer's name and its spikes `[T, B, *N]`.

        Returns:
            outputs `[T, B, K]`, the readout accumulated up to each step, and the state.
        """
        currents, readout, state = self.run(frames, state, gradient=Automatic(surrogate), observe=observe)
        return readout if currents.dtype == torch.float64 else readout.float(), state

    def run(
        self,
        frames: Tensor | Frames,
        state: ModelState | None = None,
        *,
        gradient: Gradient | None = None,
        observe: Observer | None = None,
    ) -> Outputs:
        """The same, with a choice of how gradients come about.

        Args:
            frames: `[T, B, ...]`, as a tensor or made when they are asked for.
            state: where an earlier call ended; None starts a run.
            gradient: None gives no gradient through spikes.
            observe: called with each layer's name and its spikes `[T, B, *N]`.

        Raises:
            ConfigError: if the network has something that such gradients cannot pass.
        """
        start = 0 if state is None else state.steps
        if self.pre_steps and not (gradient is None or isinstance(gradient, Automatic)):
            raise ConfigError(f"pre_steps: got {self.pre_steps}, which {type(gradient).__name__} cannot pass; use 0")
        if 0 < (rest := self.pre_steps - start) < len(frames):
            early = self.run(frames[:rest], state, gradient=gradient, observe=observe)
            late = self.run(frames[rest:], early.state, gradient=gradient, observe=observe)
            currents, readout = (torch.cat(parts) for parts in zip(early[:2], late[:2], strict=True))
            return Outputs(currents, readout, late.state)
        run = state.run if state is not None else None
        if run is None:
            run = (gradient or Automatic()).begin(self.program, state.modules if state else None, observe)
        currents = run.simulate(frames)
        readout = self.accumulate(currents, None if state is None else state.readout, start)
        steps, modules = start + len(currents), run.states
        if steps == self.pre_steps:
            modules = modules | {name: neuron.restart(modules[name]) for name, neuron in self.neurons.items()}
        return Outputs(currents, readout, ModelState(modules, readout[-1], steps, run if run.flow.goes_on else None))

    def accumulate(self, currents: Tensor, before: Tensor | None = None, start: int = 0) -> Tensor:
        """The readout `O[t] = readout_leak * O[t-1] + I[t]`, float64 `[T, B, K]`, for currents `[T, B, K]`.

        In float64, one step after the other, so that the sum does not depend on how time was cut into chunks. Before
        the first step that is read, it is 0.

        Args:
            before: the readout `[B, K]` at the step before the first; None starts a run.
            start: how many steps have run before these.
        """
        wide = currents.double()
        if (unread := self.first_answer - 1 - start) > 0:
            wide = torch.cat([torch.zeros_like(wide[:unread]), wide[unread:]])
        if self.readout_leak == 1:
            return wide.cumsum(0) if before is None else torch.cat([before.unsqueeze(0), wide]).cumsum(0)[1:]
        readout = torch.zeros_like(wide[0]) if before is None else before
        steps = []
        for current in wide:
            readout = self.readout_leak * readout + current
            steps.append(readout)
        return torch.stack(steps)


class IntegerModel(SpikingModel):
    """A spiking network whose values are integers, in float32, which holds them exactly (`hybridsnn.program.ranges`).

    Attributes:
        readout_scale: what 1 of the integer readout stands for in that of the original network.
        bits: of the weights.
    """

    readout_scale: float = 1.0
    bits: int = 8

    def forward(self, frames: Tensor, state: ModelState | None = None, **options: Any) -> tuple[Tensor, ModelState]:
        """See `SpikingModel`; the readout is scaled to that of the original network."""
        readout, state = super().forward(frames, state, **options)
        return readout * self.readout_scale, state
