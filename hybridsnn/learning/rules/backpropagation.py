"""The rule of `train-ann`."""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from hybridsnn.learning.rules.base import Backward, LearningRule


class BackPropagation(LearningRule):
    """Plain back-propagation of the cross-entropy, for an ANN."""

    summary: ClassVar[str] = "back-propagation of the cross-entropy, for an ANN"

    def step(self, model: nn.Module, inputs: Tensor, labels: Tensor, backward: Backward) -> tuple[Tensor, Tensor]:
        """See `LearningRule.step`."""
        logits = model(inputs)
        loss = functional.cross_entropy(logits, labels)
        backward(loss)
        return loss.detach(), logits.detach()
