"""The neuron scan: currents over time in, spikes over time out. One definition, fast paths held to it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybridsnn.errors import ConfigError
from hybridsnn.kernels.neuron import bits, cpu, cuda, reference, slopes
from hybridsnn.kernels.neuron.surrogate import Surrogate, shape_of
from hybridsnn.registry import look_up


@dataclass(frozen=True)
class Kernel:
    """One way to run the scan. Names and shapes of tensors are those of `scan`.

    Attributes:
        supports: (current) whether it runs such currents.
        shapes: of the surrogates that `backward` knows; None: any, by their `slope`.
        forward: (current, threshold, leak, membrane, since_spike, hard_reset, *, pack, potentials, overwrite) to
            spikes, the final membrane and clock, and, if asked for,
            bits: the spikes, uint8 `[ceil(T / 8), B, *N]`: bit t % 8 of byte t // 8 is the spike of step t, and
            potentials: the membranes before the reset `[T, B, *N]`.
            With `overwrite` the memory of the currents may hold the spikes.
        backward: (grad_spikes, grad_membrane or None, bits, potentials or None, threshold, leak, membrane or None,
            since_spike, hard_reset, surrogate, *, learns_threshold, learns_leak, overwrite) to the gradients of the
            currents `[T, B, *N]`, of the membrane it started from `[B, *N]`, of the threshold and of the leak (None
            if they do not learn). The potentials are needed where the surrogate sees the membrane or the leak learns,
            the membrane at the start only by the latter.
            With `overwrite` the memory of `grad_spikes` may hold the gradients of the currents.
        unpack: (bits, steps, dtype) to spikes `[steps, B, *N]`.
        advance: (since_spike, bits, steps) to the clock `[B, *N]` after those steps.
        rewind: (clock after a chunk, bits, steps, a list of (bits, steps) of all earlier chunks, since_spike before
            the first of them) to the clock `[B, *N]` before the chunk.
    """

    name: str
    summary: str
    supports: Callable[[Tensor], bool]
    shapes: Collection[str] | None
    forward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor | None, Tensor | None]]
    unpack: Callable[[Tensor, int, torch.dtype], Tensor]
    advance: Callable[[Tensor, Tensor, int], Tensor]
    rewind: Callable[[Tensor, Tensor, int, list[tuple[Tensor, int]], Tensor], Tensor]


def scan(
    current: Tensor,
    threshold: Tensor,
    leak: Tensor,
    membrane: Tensor,
    since_spike: Tensor,
    *,
    hard_reset: bool = False,
    surrogate: Surrogate | None = None,
    kernel: str = "auto",
    overwrite: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a layer of neurons over time: integrate, fire, reset.

        U[t] = leak * V[t-1] + I[t],   s[t] = 1 if U[t] >= threshold else 0
        V[t] = U[t] - threshold * s[t]   (soft reset)   or   U[t] * (1 - s[t])   (hard reset)

    Args:
        current: input currents `[T, B, *N]`; `N` is `[features]` or `[channels, height, width]`.
        threshold: `[]` (one per layer), `[channels]`, or `[*N]` (one per neuron).
        leak: like `threshold`; 1 makes an integrate-and-fire neuron.
        membrane: what earlier steps left after their reset, `V[-1]`, `[B, *N]`.
        since_spike: steps from the last spike to the first step of this call, int32 `[B, *N]`.
        hard_reset: reset to 0 instead of subtracting the threshold.
        surrogate: what replaces `ds/dU` in the backward pass; None runs without gradients. The reset
            is not differentiated, and `ds/dthreshold` is `-ds/dU`, since a spike depends on `U - threshold`.
        kernel: "auto", or a name in `KERNELS`.
        overwrite: whether the memory of the currents may hold the spikes, where no gradients are asked for.

    Returns:
        spikes `[T, B, *N]` (0 or 1, in the type of `current`), the final membrane `[B, *N]` and the
        final `since_spike` `[B, *N]`, which continue the run when given to the next call. Membranes are float32 or
        wider, whatever the synapses run in.

    Raises:
        ConfigError: if the kernel is unknown, or cannot run these tensors or this surrogate.
    """
    if surrogate is None or not torch.is_grad_enabled():
        chosen = choose(kernel, current)
        floats = (values.detach() for values in (current, threshold, leak, membrane))
        return chosen.forward(*floats, since_spike, hard_reset, overwrite=overwrite)[:3]
    chosen = choose(kernel, current, surrogate)
    return _Scan.apply(current, threshold, leak, membrane, since_spike, hard_reset, surrogate, chosen)


class _Scan(torch.autograd.Function):
    """The scan with its gradients. The spike-time surrogate keeps one bit a step, the others the membranes too."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, threshold: Tensor, leak: Tensor, membrane: Tensor, since: Tensor,
                hard: bool, surrogate: Surrogate, kernel: Kernel) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        keep = surrogate.needs_membrane or ctx.needs_input_grad[2]
        spikes, final_membrane, final_since, bits, potentials = kernel.forward(
            current, threshold, leak, membrane, since, hard, pack=True, potentials=keep
        )
        ctx.save_for_backward(bits, potentials, threshold, leak, membrane if keep else None, since)
        ctx.hard, ctx.surrogate, ctx.kernel = hard, surrogate, kernel
        ctx.mark_non_differentiable(final_since)
        return spikes, final_membrane, final_since

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        bits, potentials, threshold, leak, membrane, since = ctx.saved_tensors
        grad_current, grad_membrane, grad_threshold, grad_leak = ctx.kernel.backward(
            *gradients[:2], bits, potentials, threshold, leak, membrane, since, ctx.hard, ctx.surrogate,
            learns_threshold=ctx.needs_input_grad[1], learns_leak=ctx.needs_input_grad[2],
        )  # fmt: skip
        return grad_current, grad_threshold, grad_leak, grad_membrane if ctx.needs_input_grad[3] else None, *[None] * 4


def choose(kernel: str, current: Tensor, surrogate: Surrogate | None = None) -> Kernel:
    """The kernel for such currents: the fastest one for "auto", else the one that is named.

    Args:
        surrogate: of the backward pass; None: there is none.

    Raises:
        ConfigError: if the kernel is unknown, or cannot run these tensors or this surrogate.
    """
    if kernel == "auto":
        able = (each for each in reversed(KERNELS.values()) if each.supports(current))
        return next(each for each in able if surrogate is None or each.shapes is None or surrogate.shape in each.shapes)
    chosen = look_up(KERNELS, kernel, "kernel")
    if not chosen.supports(current):
        raise ConfigError(
            f"kernel: '{kernel}' cannot run {current.dtype} on {current.device.type}; use 'auto' or 'reference'"
        )
    if surrogate is not None and chosen.shapes is not None:
        shape_of(surrogate, chosen.shapes, kernel)
    return chosen


KERNELS = {
    "reference": Kernel(
        "reference",
        "a plain loop over time in PyTorch, on any device",
        lambda current: True,
        None,
        reference.forward,
        reference.backward,
        reference.unpack,
        reference.advance,
        reference.rewind,
    ),
    "numba": Kernel(
        "numba",
        "one pass over memory, compiled for the CPU",
        cpu.supports,
        slopes.SHAPES,
        cpu.forward,
        cpu.backward,
        bits.unpack,
        bits.advance,
        bits.rewind,
    ),
    "triton": Kernel(
        "triton",
        "one pass over memory, compiled for a GPU",
        cuda.supports,
        cuda.SHAPES,
        cuda.forward,
        cuda.backward,
        reference.unpack,
        reference.advance,
        reference.rewind,
    ),
}  # the fastest last
