"""Learning rules that send errors back through the whole run: of an ANN, and of a spiking network through time."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import functional

from hybridsnn.encoders import Frames
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
    """Back-propagation through time.

    Args:
        surrogate: stands in for the derivative of a spike. With `spike-time` this is STDB.
        per_step: the loss is a mean over the steps (STBP), instead of the cross-entropy of the readout at the last
            step (Rathi et al., 2020): of the cross-entropy of what flows into the readout, or
        readout_loss: of the readout itself, at each step.
    """

    def __init__(self, surrogate: Surrogate, *, per_step: bool = False, readout_loss: bool = False):
        self.surrogate, self.per_step, self.readout_loss = surrogate, per_step, readout_loss

    def step(self, model: Any, inputs: Tensor | Frames, labels: Tensor, backward: Backward) -> tuple[Tensor, Tensor]:
        """See `LearningRule.step`."""
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
