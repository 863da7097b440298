"""What every learning rule is, and the options that several have in common."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

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

    def at(self, timesteps: int) -> Self:
        """This rule for T time steps, with what its options leave open settled; most leave nothing open."""
        return self

    @abstractmethod
    def step(self, model: Any, inputs: Any, labels: Tensor, backward: Backward) -> tuple[Tensor, Tensor]:
        """Fill `.grad` of the parameters that learn.

        Args:
            model: an ANN, or a `SpikingModel`.
            inputs: images `[B, C, H, W]` for an ANN, frames `[T, B, C, H, W]` for a spiking network,
                as a tensor or as `Frames`.
            labels: int64 `[B]`, or probabilities `[B, K]`; `torch.nn.functional.cross_entropy` takes both.
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

    loss: Literal["current", "readout", "tet"] = Field(
        "current",
        description="What the loss of a time step is: the cross-entropy of what flows into the readout at that step; "
        "or of what the readout has accumulated up to it, which suits converted networks; or TET, the former with a "
        "pull of every output towards 1.",
    )
    tet_weight: float = Field(
        1e-3, ge=0, le=1, description="Share of the pull towards 1 in the loss 'tet'; at 0 it is 'current'."
    )

    @property
    def readout_loss(self) -> bool:
        """Whether the loss of a step is that of the readout, not of what flows into it at the step."""
        return self.loss == "readout"

    def loss_of(self, currents: Tensor, readout: Tensor, labels: Tensor) -> Tensor:
        """The mean over so many steps, and the batch, of the loss of a step.

        With the currents `I[t]` and the readout `O[t] = readout_leak * O[t-1] + I[t]`:

            current   CE(I[t], label)
            readout   CE(O[t], label)
            tet       (1 - w) CE(I[t], label) + w mean over classes of (I[t] - 1)^2, where w is `tet_weight`

        `current` is the loss L_TET of temporal efficient training (Deng et al., ICLR 2022, eq. 10), and `tet` its
        L_TOTAL (eq. 12): there too, the output of a step is what the last synapse gives at that step alone.

        Args:
            currents: what flows into the readout, `[T, B, K]`.
            readout: accumulated up to each step, `[T, B, K]`.
            labels: see `LearningRule.step`.
        """
        judged = readout.to(currents.dtype) if self.readout_loss else currents
        loss = mean_cross_entropy(judged, labels)
        if self.loss == "tet" and self.tet_weight > 0:
            pull = functional.mse_loss(currents, torch.ones_like(currents))
            loss = (1 - self.tet_weight) * loss + self.tet_weight * pull
        return loss


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over steps and batch for logits `[T, B, K]`, with the labels of `LearningRule.step`."""
    return functional.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits), *[1] * (labels.dim() - 1)))
