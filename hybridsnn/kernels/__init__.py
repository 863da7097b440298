"""The neuron scan: currents over time in, spikes over time out. One definition, fast paths held to it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hybridsnn.errors import ConfigError
from hybridsnn.kernels import cpu, reference
from hybridsnn.registry import look_up


class Surrogate(Protocol):
    """What the scan must know of a surrogate gradient; `hybridsnn.surrogates` holds the real ones."""

    @property
    def shape(self) -> str: ...  # "spike-time", "triangle" or "exponential"
    @property
    def height(self) -> float: ...
    @property
    def decay(self) -> float: ...
    @property
    def relative(self) -> bool: ...
    @property
    def needs_membrane(self) -> bool: ...

    def slope(self, membrane: Tensor, threshold: Tensor, since_spike: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Kernel:
    """One way to run the scan."""

    name: str
    summary: str
    scan: Callable[..., tuple[Tensor, Tensor, Tensor]]
    supports: Callable[[Tensor], bool]


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

    Returns:
        spikes `[T, B, *N]` (0 or 1, in the type of `current`), the final membrane `[B, *N]` and the
        final `since_spike` `[B, *N]`, which continue the run when given to the next call.

    Raises:
        ConfigError: if the kernel is unknown or cannot run these tensors.
    """
    chosen = choose(kernel, current)
    # Membranes are float32 or wider, whatever the synapses run in.
    wide = current if current.dtype in (torch.float32, torch.float64) else current.float()
    spikes, membrane, since_spike = chosen.scan(
        wide, threshold.to(wide.dtype), leak.to(wide.dtype), membrane, since_spike, hard_reset, surrogate
    )
    return spikes.to(current.dtype), membrane, since_spike


def choose(kernel: str, current: Tensor) -> Kernel:
    """The kernel for such currents: the fastest one for "auto", else the one that is named.

    Raises:
        ConfigError: if the kernel is unknown or cannot run these tensors.
    """
    if kernel == "auto":
        return KERNELS["numba"] if cpu.supports(current) else KERNELS["reference"]
    chosen = look_up(KERNELS, kernel, "kernel")
    if not chosen.supports(current):
        raise ConfigError(
            f"kernel: '{kernel}' cannot run {current.dtype} on {current.device.type}; use 'auto' or 'reference'"
        )
    return chosen


KERNELS = {
    "reference": Kernel(
        "reference", "a plain loop over time in PyTorch: the definition", reference.scan, lambda current: True
    ),
    "numba": Kernel("numba", "one pass over memory, compiled for the CPU", cpu.scan, cpu.supports),
}
