"""STOP: errors back through space at one step, traces forward through time; memory does not grow with time."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hybridsnn.encoders import Frames, constant_in_time
from hybridsnn.errors import ConfigError
from hybridsnn.learning.bptt import Backward
from hybridsnn.model import ModelState
from hybridsnn.program.gradients import Traces
from hybridsnn.surrogates import Surrogate


class ForwardTraces:
    """Spatiotemporal orthogonal propagation, and the methods that differ from it in what they leave out.

    Weights always learn from traces; thresholds and leaks do where they require gradients. The loss of a run is the
    mean over its steps of a cross-entropy: of what flows into the readout at that step, or of the readout itself.

    Args:
        surrogate: of the distance to the threshold.
        traces: False is SLTT (Meng et al., ICCV 2023): no trace, each step learns from itself alone.
        readout_loss: take the loss of the readout. Its weights then learn from a trace too, and what earlier steps
            brought it counts as given for the other layers.
        backward_steps: how many steps, drawn for each batch, have a backward pass (SLTT-K); None: all.
        one_shot: OSSTOP: one backward pass at the last step, from the readout that the steps before have filled.

    Raises:
        ConfigError: if the surrogate needs the time since the last spike.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        *,
        traces: bool = True,
        readout_loss: bool = False,
        backward_steps: int | None = None,
        one_shot: bool = False,
    ):
        if not surrogate.needs_membrane:
            raise ConfigError(f"surrogate: got '{surrogate.name}', must be one of the distance to the threshold")
        self.surrogate, self.traces, self.readout_loss = surrogate, traces, readout_loss
        self.backward_steps, self.one_shot = backward_steps, one_shot

    def step(self, model: Any, inputs: Tensor | Frames, labels: Tensor, backward: Backward) -> tuple[Tensor, Tensor]:
        """See `LearningRule.step`."""
        timesteps = len(inputs)
        gradient = Traces(
            self.surrogate,
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
                logits = readout[0].to(currents.dtype) if self.one_shot or self.readout_loss else currents[0]
                loss = functional.cross_entropy(logits, labels) / len(learning)
            if timestep in learning:
                backward(loss)
                total += loss.detach()
            state.readout, dtype = state.readout.detach(), currents.dtype  # what earlier steps brought it is given
            del currents, readout, logits, loss  # and with them all that the step's graph holds
        assert state is not None and state.run is not None
        gradient.finish(state.run)
        return total, state.readout.to(dtype)

    def _learning_steps(self, timesteps: int) -> set[int]:
        if self.one_shot:
            return {timesteps - 1}
        if self.backward_steps is None or self.backward_steps >= timesteps:
            return set(range(timesteps))
        return set(torch.randperm(timesteps)[: self.backward_steps].tolist())
