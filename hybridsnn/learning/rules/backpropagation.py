"""The rule of `train-ann`."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from hybridsnn.learning.rules.base import Backward, LearningRule


class BackPropagation(LearningRule):
    """Plain back-propagation of the cross-entropy, for an ANN."""

    summary: ClassVar[str] = "back-propagation of the cross-entropy, for an ANN"

    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of each label spread over all classes (Szegedy et al., CVPR 2016)."
    )

    def step(self, model: nn.Module, inputs: Tensor, labels: Tensor, backward: Backward) -> tuple[Tensor, Tensor]:
        """See `LearningRule.step`."""
        logits = model(inputs)
        loss = functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        backward(loss)
        return loss.detach(), logits.detach()
