"""Rate-based back-propagation: as cheap as a training step of an ANN."""

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from hybridsnn.encoders import Frames, constant_in_time
from hybridsnn.learning.rules.base import SURROGATE, Backward, SurrogateGradient, SurrogateOfDistance
from hybridsnn.model import ModelState
from hybridsnn.program.gradients import Rates, can_run_in_chunks

CHUNK = 8  # steps whose membranes are in memory at once


class Rate(SurrogateGradient):
    """Rate-based back-propagation (Yu et al., NeurIPS 2024): see `Rates`. Memory does not grow with time.

    The loss is the cross-entropy of the readout O after the last step. Its gradient by O goes to the mean current into
    the readout: 1/T of what follows from O = T times the mean.
    """

    summary: ClassVar[str] = "rate-based back-propagation: one backward pass over mean rates, as cheap as the ANN's"

    surrogate: SurrogateOfDistance = Field("sigmoid", description=SURROGATE)

    def step(self, model: Any, inputs: Tensor | Frames, labels: Tensor, backward: Backward) -> tuple[Tensor, Tensor]:
        """See `LearningRule.step`."""
        gradient = Rates(self.spike_derivative, static=constant_in_time(inputs))
        chunk = CHUNK if can_run_in_chunks(model.body) else len(inputs)  # a batch norm sees all steps together
        state: ModelState | None = None
        for start in range(0, len(inputs), chunk):
            currents, _, state = model.run(inputs[start : start + chunk], state, gradient=gradient)
        assert state is not None and state.run is not None
        mean = gradient.mean(state.run)
        logits = state.readout.to(currents.dtype)
        loss = functional.cross_entropy(logits + (mean - mean.detach()), labels)
        backward(loss)
        return loss.detach(), logits
