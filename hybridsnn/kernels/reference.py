"""The definition of the neuron scan: a plain loop that autograd differentiates. Never made fast."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hybridsnn.kernels import Surrogate


def broadcast(parameter: Tensor, current: Tensor) -> Tensor:
    """View a parameter `[]`, `[channels]` or `[*N]` so that it broadcasts over `[B, *N]`."""
    if parameter.dim() == 1:
        return parameter.view(-1, *[1] * (current.dim() - 3))
    return parameter


class Fire(torch.autograd.Function):
    """A spike where the membrane reaches the threshold; backward, the slope it was given."""

    @staticmethod
    def forward(ctx: Any, membrane: Tensor, threshold: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return (membrane >= threshold).to(membrane.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (slope,) = ctx.saved_tensors
        gradient = gradients[0] * slope
        return gradient, -gradient, None


def scan(
    current: Tensor,
    threshold: Tensor,
    leak: Tensor,
    membrane: Tensor,
    since_spike: Tensor,
    hard_reset: bool,
    surrogate: "Surrogate | None",
) -> tuple[Tensor, Tensor, Tensor]:
    """See `hybridsnn.kernels.scan`."""
    threshold, leak = broadcast(threshold, current), broadcast(leak, current)
    spikes = []
    for step_current in current:
        potential = leak * membrane + step_current
        if surrogate is None:
            spike = (potential >= threshold).to(potential.dtype)
        else:
            level = threshold.expand_as(potential)
            slope = surrogate.slope(potential.detach(), level.detach(), since_spike)
            spike = Fire.apply(potential, level, slope)
        fired = spike.detach()
        membrane = potential * (1 - fired) if hard_reset else potential - threshold * fired
        since_spike = torch.where(fired > 0, 1, since_spike + 1).to(since_spike.dtype)
        spikes.append(spike)
    return torch.stack(spikes), membrane, since_spike
