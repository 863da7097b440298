"""BPTT with a loss at every step, which STOP is compared with."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from hybridsnn.learning.rules.base import SURROGATE, AnySurrogate, LossAtEachStep
from hybridsnn.learning.rules.through_time import BackPropagationThroughTime
from hybridsnn.model import Outputs


class STBP(LossAtEachStep, BackPropagationThroughTime):
    """Spatio-temporal backpropagation with a detached reset: the loss is a mean over the steps."""

    summary: ClassVar[str] = "BPTT with a loss at every step and a detached reset: what STOP is compared with"

    surrogate: AnySurrogate = Field("exponential", description=SURROGATE)

    def _loss(self, outputs: Outputs, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss = self.loss_of(outputs.currents, outputs.readout, labels)
        return loss, outputs.readout[-1].to(outputs.currents.dtype)
