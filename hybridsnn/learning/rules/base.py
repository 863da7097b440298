"""What every learning rule is, and the options that several have in common."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from hybridsnn.config import Choice
from hybridsnn.options import Options
from hybridsnn.surrogates import SURROGATES, Surrogate

Backward = Callable[[Tensor], None]

SURROGATE = "Stands in for the derivative of a spike."
AnySurrogate = Annotated[str, Choice(SURROGATES, "surrogate")]
SurrogateOfDistance = Annotated[str, Choice(SURROGATES, "surrogate", lambda surrogate: surrogate.needs_membrane)]


class LearningRule(Options):
    """How one batch changes the gradients of a network. The fields of a rule are its options.

    Attributes:
        summary: one line for lists.
    """

    summary: ClassVar[str]

    @property
    def learns_thresholds(self) -> bool:
        """Whether thresholds learn too."""
        return False

    @property
    def learns_leaks(self) -> bool:
        """Whether leaks learn too."""
        return False

    @abstractmethod
    def step(self, model: Any, inputs: Any, labels: Tensor, backward: Backward) -> tuple[Tensor, Tensor]:
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


class SurrogateGradient(LearningRule):
    """A rule that sends errors through spikes. Subclasses give `surrogate` a default, and say which ones fit."""

    surrogate: AnySurrogate = Field(description=SURROGATE)

    @property
    def spike_derivative(self) -> Surrogate:
        """What stands in for the derivative of a spike."""
        return SURROGATES[self.surrogate]


class LearnsIfAsked(LearningRule):
    """A rule under which thresholds and leaks can learn, but need not."""

    learn_thresholds: bool = Field(False, description="Train thresholds too; a projection keeps them above 0.")
    learn_leaks: bool = Field(False, description="Train leaks too; a projection keeps them in [0, 1].")

    @property
    def learns_thresholds(self) -> bool:
        return self.learn_thresholds

    @property
    def learns_leaks(self) -> bool:
        return self.learn_leaks


class LossAtEachStep(LearningRule):
    """A rule whose loss is a mean over the time steps."""

    loss: Literal["current", "readout"] = Field(
        "current",
        description="What the loss of a time step is of: what flows into the readout at that step, or what the "
        "readout has accumulated up to it, which suits converted networks.",
    )

    @property
    def readout_loss(self) -> bool:
        """Whether the loss of a step is that of the readout, not of what flows into it at the step."""
        return self.loss == "readout"
