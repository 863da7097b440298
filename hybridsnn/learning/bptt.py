"""Learning rules that send errors back through the whole run: of an ANN, and of a spiking network through time."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import functional

from hybridsnn.encoders import Frames
from hybridsnn.learning.chunks import chunks_of_time
from hybridsnn.learning.through_time import ThroughTime, cuts_in_time
from hybridsnn.model import Simulation
from hybridsnn.surrogates import Surrogate

Backward = Callable[[Tensor], None]


class LearningRule(Protocol):
    """How one batch changes the gradients of a network."""

    def step(self, model: nn.Module, inputs: Any, labels: Tensor, backward: Backward) -> tuple[Tensor, Tensor]:
        """Fill `.grad` of the parameters that learn.

        Args:
            model: an ANN, or a `SpikingModel`.
            inputs: images `[B, C, H, W]` for an ANN, frames `[T, B, C, H, W]` for a spiking network,
                as a tensor or as `Frames`.
            labels: int64 `[B]`.
            backward: called with a loss instead of `loss.backward()`, so that precision and devices are respected.

        Returns:
            the loss, a scalar, and the logits `[B, K]`, both without gradient.
        """
        ...


class BackPropagation:
    """Plain back-propagation of the cross-entropy, for an ANN."""

    def step(self, model: nn.Module, inputs: Tensor, labels: Tensor, backward: Backward) -> tuple[Tensor, Tensor]:
        """See `LearningRule.step`."""
        logits = model(inputs)
        loss = functional.cross_entropy(logits, labels)
        backward(loss)
        return loss.detach(), logits.detach()


class BackPropagationThroughTime:
    """Back-propagation through time, in chunks of time that fit in a memory budget.

    A network that cannot be cut in time (a batch norm in training sees all steps together) runs as a whole.

    Args:
        surrogate: stands in for the derivative of a spike. With `spike-time` this is STDB.
        per_step: the loss is a mean over the steps (STBP), instead of the cross-entropy of the readout at the last
            step (Rathi et al., 2020): of the cross-entropy of what flows into the readout, or
        readout_loss: of the readout itself, at each step.
        memory_budget: bytes for what a training step needs besides weights and their gradients; None: for the work
            on a chunk 128 MiB, or 8 steps if they take more.

    Raises:
        ConfigError: in `step`, if the budget is too small.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        *,
        per_step: bool = False,
        readout_loss: bool = False,
        memory_budget: int | None = None,
    ):
        self.surrogate, self.per_step, self.readout_loss = surrogate, per_step, readout_loss
        self.memory_budget = memory_budget

    def step(self, model: Any, inputs: Tensor | Frames, labels: Tensor, backward: Backward) -> tuple[Tensor, Tensor]:
        """See `LearningRule.step`."""
        if cuts_in_time(model.body):
            chunks = chunks_of_time(model.body, inputs, self.surrogate, self.memory_budget)
            currents = model.currents(inputs, ThroughTime(model.body, self.surrogate, chunks))
        else:
            currents = model.currents(inputs[:], Simulation(model.body, surrogate=self.surrogate))
        outputs = model.accumulate(currents).to(currents.dtype)
        logits = outputs[-1]
        if self.per_step:
            judged = outputs if self.readout_loss else currents
            loss = functional.cross_entropy(judged.flatten(0, 1), labels.repeat(len(inputs)))
        else:
            loss = functional.cross_entropy(logits, labels)
        backward(loss)
        return loss.detach(), logits.detach()
