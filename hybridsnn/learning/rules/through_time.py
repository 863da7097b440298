"""Back-propagation through time: what stdb, linear and stbp share."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from hybridsnn.encoders import Frames, samples_of
from hybridsnn.learning.rules.base import Backward, LearnsIfAsked, SurrogateGradient
from hybridsnn.model import Outputs
from hybridsnn.program.gradients import Automatic, Bits, can_run_in_chunks
from hybridsnn.program.pieces import Pieces


class BackPropagationThroughTime(LearnsIfAsked, SurrogateGradient):
    """Back-propagation through time, in pieces that fit in a memory budget.

    A part of the batch runs through time chunk by chunk and back, then the next part; the loss of each is weighted by
    its share of the batch, so that gradients are those of the batch as a whole. A network that cannot be cut in time
    (a batch norm in training sees all samples and steps together) runs as a whole.

    The loss is the cross-entropy of the readout at the last step (Rathi et al., 2020), unless a rule says otherwise.

    Raises:
        ConfigError: in `step`, if the memory budget is too small.
    """

    memory_budget: float | None = Field(
        None,
        gt=0,
        description="GiB for a training step besides weights, gradients and optimiser; batch and time are cut into "
        "pieces that fit. Unset: only time is cut, into chunks that need 256 MiB, or of 8 steps if those need more.",
    )

    def step(self, model: Any, inputs: Tensor | Frames, labels: Tensor, backward: Backward) -> tuple[Tensor, Tensor]:
        """See `LearningRule.step`; `backward` is called for each part of the batch."""
        surrogate = self.spike_derivative
        if not can_run_in_chunks(model.body):
            loss, logits = self._loss(model.run(inputs[:], gradient=Automatic(surrogate)), labels)
            backward(loss)
            return loss.detach(), logits.detach()
        budget = None if self.memory_budget is None else int(self.memory_budget * 2**30)
        pieces = Pieces.of(model.program, inputs, surrogate, budget, model.value_bytes())
        gradient = Bits(surrogate, pieces.timesteps)
        total, logits_of_parts, first = torch.zeros((), device=labels.device), [], 0
        for samples in pieces.samples:
            part = slice(first, first + samples)
            loss, logits = self._loss(model.run(samples_of(inputs, part), gradient=gradient), labels[part])
            loss = loss * (samples / len(labels))
            backward(loss)
            total, first = total + loss.detach(), first + samples
            logits_of_parts.append(logits.detach())
        return total, torch.cat(logits_of_parts)

    def _loss(self, outputs: Outputs, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the logits `[B, K]`."""
        logits = outputs.readout[-1].to(outputs.currents.dtype)
        return functional.cross_entropy(logits, labels), logits
