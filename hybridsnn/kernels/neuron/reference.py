"""The neuron scan in plain PyTorch, on any device. `scan` is the definition, which autograd differentiates.

`forward` and `backward` are the same with the backward recursion written out, from spikes kept as bits.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hybridsnn.kernels.neuron.layout import reduce_to
from hybridsnn.kernels.neuron.surrogate import Surrogate


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
    surrogate: Surrogate | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `hybridsnn.kernels.neuron.scan`. Without a surrogate no gradient passes a spike."""
    wide = current.to(torch.promote_types(current.dtype, torch.float32))
    threshold, leak = broadcast(threshold.to(wide.dtype), current), broadcast(leak.to(wide.dtype), current)
    spikes = []
    for step_current in wide:
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
    return torch.stack(spikes).to(current.dtype), membrane, since_spike


def forward(
    current: Tensor,
    threshold: Tensor,
    leak: Tensor,
    membrane: Tensor,
    since_spike: Tensor,
    hard_reset: bool,
    *,
    pack: bool = False,
    potentials: bool = False,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """See `hybridsnn.kernels.neuron.Kernel`."""
    kept, spikes = [], []
    for step_current in current:
        if potentials:
            wide = step_current.to(membrane.dtype)
            kept.append(broadcast(leak.to(wide.dtype), current) * membrane + wide)
        fired, membrane, since_spike = scan(
            step_current.unsqueeze(0), threshold, leak, membrane, since_spike, hard_reset, None
        )
        spikes.append(fired[0])
    train = torch.stack(spikes)
    return train, membrane, since_spike, _pack(train) if pack else None, torch.stack(kept) if potentials else None


def backward(
    grad_spikes: Tensor,
    grad_membrane: Tensor | None,
    bits: Tensor,
    potentials: Tensor | None,
    threshold: Tensor,
    leak: Tensor,
    membrane: Tensor | None,
    since_spike: Tensor,
    hard_reset: bool,
    surrogate: Surrogate,
    *,
    learns_threshold: bool,
    learns_leak: bool,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """See `hybridsnn.kernels.neuron.Kernel`."""
    wide = torch.promote_types(grad_spikes.dtype, torch.float32)
    spikes = unpack(bits, len(grad_spikes), wide)
    level = broadcast(threshold.to(wide), grad_spikes).expand_as(spikes[0])
    keep = broadcast(leak.to(wide), grad_spikes)
    slopes = []
    for t, fired in enumerate(spikes):
        potential = level if potentials is None else potentials[t]  # which a slope in time does not see
        slopes.append(surrogate.slope(potential, level, since_spike))
        since_spike = torch.where(fired > 0, 1, since_spike + 1).to(since_spike.dtype)
    carried = torch.zeros_like(level) if grad_membrane is None else grad_membrane.to(wide)
    by_threshold, by_leak = torch.zeros_like(carried), torch.zeros_like(carried)
    grad_current = torch.empty_like(grad_spikes)
    for t in reversed(range(len(spikes))):
        entering = grad_spikes[t].to(wide) * slopes[t]
        by_threshold -= entering if hard_reset else entering + carried * spikes[t]
        entering = entering + (carried * (1 - spikes[t]) if hard_reset else carried)
        if learns_leak:
            by_leak += entering * _rest(membrane, potentials, spikes, level, hard_reset, t)
        grad_current[t] = entering
        carried = keep * entering
    return (
        grad_current,
        carried,
        reduce_to(by_threshold, threshold).to(threshold.dtype) if learns_threshold else None,
        reduce_to(by_leak, leak).to(leak.dtype) if learns_leak else None,
    )


def _rest(
    membrane: Tensor | None, potentials: Tensor | None, spikes: Tensor, level: Tensor, hard_reset: bool, t: int
) -> Tensor:
    """The membrane that step t found."""
    assert membrane is not None and potentials is not None  # who learns leaks keeps them
    if t == 0:
        return membrane
    before = potentials[t - 1]
    return before * (1 - spikes[t - 1]) if hard_reset else before - level * spikes[t - 1]


def _pack(spikes: Tensor) -> Tensor:
    """Spikes `[T, B, *N]` as bits: see `hybridsnn.kernels.neuron.Kernel`."""
    bits = spikes.new_zeros((len(spikes) + 7) // 8, *spikes.shape[1:], dtype=torch.uint8)
    for t, fired in enumerate(spikes):
        bits[t // 8] += fired.to(torch.uint8) << t % 8
    return bits


def unpack(bits: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """See `hybridsnn.kernels.neuron.Kernel`."""
    return torch.stack([bits[t // 8] >> t % 8 & 1 for t in range(steps)]).to(dtype)


def advance(since_spike: Tensor, bits: Tensor, steps: int) -> Tensor:
    """See `hybridsnn.kernels.neuron.Kernel`."""
    for spikes in unpack(bits, steps, torch.bool):
        since_spike = torch.where(spikes, 1, since_spike + 1).to(since_spike.dtype)
    return since_spike


def rewind(
    after: Tensor, bits: Tensor, steps: int, earlier: Sequence[tuple[Tensor, int]], since_spike: Tensor
) -> Tensor:
    """See `hybridsnn.kernels.neuron.Kernel`. From the start, which asks for nothing else."""
    for words, length in earlier:
        since_spike = advance(since_spike, words, length)
    return since_spike
