"""Errors back through space at one step, traces forward through time: what stop, osstop, ottt and sltt share."""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from hybridsnn.encoders import Frames, constant_in_time
from hybridsnn.learning.rules.base import SURROGATE, Backward, SurrogateGradient, SurrogateOfDistance
from hybridsnn.model import ModelState
from hybridsnn.program.gradients import Traces


class ForwardTraces(SurrogateGradient):
    """Spatiotemporal orthogonal propagation, and the methods that differ from it in what they leave out.

    Weights always learn from traces; thresholds and leaks do where they require gradients. The loss of a run is the
    mean over its steps of a cross-entropy: of what flows into the readout at that step, or of the readout itself. The
    weights of the readout then learn from a trace too, and what earlier steps brought it counts as given for the other
    layers. Memory does not grow with time.

    Attributes:
        traces: whether weights learn from the steps before, too.
        one_shot: whether only the last step has a loss, that of the readout which the steps before have filled.
    """

    traces: ClassVar[bool] = True
    one_shot: ClassVar[bool] = False

    surrogate: SurrogateOfDistance = Field("exponential", description=SURROGATE)

    @property
    def readout_loss(self) -> bool:
        """Whether the loss of a step is that of the readout, not of what flows into it at the step."""
        return False

    def loss_of(self, currents: Tensor, readout: Tensor, labels: Tensor) -> Tensor:
        """The loss of one step, for currents and readout `[1, B, K]`: here, the cross-entropy of the readout."""
        return functional.cross_entropy(readout[-1].to(currents.dtype), labels)

    def step(self, model: Any, inputs: Tensor | Frames, labels: Tensor, backward: Backward) -> tuple[Tensor, Tensor]:
        """See `LearningRule.step`; `backward` is called at each step that learns."""
        timesteps = len(inputs)
        gradient = Traces(
            self.spike_derivative,
            timesteps,
            traces=self.traces,
            readout_leak=model.readout_leak if self.readout_loss else 0.0,
            static=constant_in_time(inputs),
        )
        learning = self._learning_steps(timesteps)
        state: ModelState | None = None
        total = torch.zeros((), dtype=torch.float64, device=labels.device)
        for timestep in range(timesteps):
            with torch.set_grad_enabled(timestep in learning):
                currents, readout, state = model.run(inputs[timestep : timestep + 1], state, gradient=gradient)
                loss = self.loss_of(currents, readout, labels) / len(learning)
            if timestep in learning:
                backward(loss)
                total += loss.detach()
            state.readout, dtype = state.readout.detach(), currents.dtype  # what earlier steps brought it is given
            del currents, readout, loss  # and with them all that the step's graph holds
        assert state is not None and state.run is not None
        gradient.finish(state.run)
        return total, state.readout.to(dtype)

    def _learning_steps(self, timesteps: int) -> set[int]:
        """The steps that have a backward pass."""
        return {timesteps - 1} if self.one_shot else set(range(timesteps))
