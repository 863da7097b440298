"""Learning rules that send errors back through the whole run: of an ANN, and of a spiking network through time."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional

from hybridsnn.surrogates import Surrogate

Backward = Callable[[Tensor], None]


class LearningRule(Protocol):
    """How one batch changes the gradients of a network."""

    def step(self, model: nn.Module, inputs: Tensor, labels: Tensor, backward: Backward) -> tuple[Tensor, Tensor]:
        """Fill `.grad` of the parameters that learn.

        Args:
            model: an ANN, or a `SpikingModel`.
            inputs: images `[B, C, H, W]` for an ANN, frames `[T, B, C, H, W]` for a spiking network.
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
    """Back-propagation through time of the cross-entropy of the accumulated output `O[T-1]` (Rathi et al., 2020).

    Args:
        surrogate: stands in for the derivative of a spike. With `spike-time` this is STDB.
    """

    def __init__(self, surrogate: Surrogate):
        self.surrogate = surrogate

    def step(self, model: nn.Module, inputs: Tensor, labels: Tensor, backward: Backward) -> tuple[Tensor, Tensor]:
        """See `LearningRule.step`."""
        outputs, _ = model(inputs, surrogate=self.surrogate)
        loss = functional.cross_entropy(outputs[-1], labels)
        backward(loss)
        return loss.detach(), outputs[-1].detach()
