"""Learning rules that send errors back through the whole run: of an ANN, and of a spiking network through time."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from hybridsnn.encoders import Frames, samples_of
from hybridsnn.learning.pieces import Pieces
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
    """Back-propagation through time, in pieces that fit in a memory budget.

    A part of the batch runs through time chunk by chunk and back, then the next part; the loss of each is weighted by
    its share of the batch, so that gradients are those of the batch as a whole. A network that cannot be cut in time
    (a batch norm in training sees all samples and steps together) runs as a whole.

    Args:
        surrogate: stands in for the derivative of a spike. With `spike-time` this is STDB.
        per_step: the loss is a mean over the steps (STBP), instead of the cross-entropy of the readout at the last
            step (Rathi et al., 2020): of the cross-entropy of what flows into the readout, or
        readout_loss: of the readout itself, at each step.
        memory_budget: bytes for what a training step needs besides weights and their gradients; None: the batch is
            not cut, and the work on a chunk of time may take 256 MiB, or 8 steps if they take more.

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
        """See `LearningRule.step`; `backward` is called for each part of the batch."""
        if not cuts_in_time(model.body):
            simulation = Simulation(model.body, surrogate=self.surrogate)
            loss, logits = self._loss(model, model.currents(inputs[:], simulation), labels)
            backward(loss)
            return loss.detach(), logits.detach()
        pieces = Pieces.of(model.body, inputs, self.surrogate, self.memory_budget, model.value_bytes())
        total, outputs, first = torch.zeros((), device=labels.device), [], 0
        for samples in pieces.samples:
            part = slice(first, first + samples)
            simulation = ThroughTime(model.body, self.surrogate, pieces.timesteps)
            loss, logits = self._loss(model, model.currents(samples_of(inputs, part), simulation), labels[part])
            loss = loss * (samples / len(labels))
            backward(loss)
            total, first = total + loss.detach(), first + samples
            outputs.append(logits.detach())
        return total, torch.cat(outputs)

    def _loss(self, model: Any, currents: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the logits `[B, K]`, of what flows into the readout, `[T, B, K]`."""
        outputs = model.accumulate(currents).to(currents.dtype)
        if self.per_step:
            judged = outputs if self.readout_loss else currents
            return functional.cross_entropy(judged.flatten(0, 1), labels.repeat(len(judged))), outputs[-1]
        return functional.cross_entropy(outputs[-1], labels), outputs[-1]
