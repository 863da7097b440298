"""The neuron scan on a CPU: one pass over memory for each direction, compiled by numba."""

import torch
from torch import Tensor

from hybridsnn.kernels.neuron import cpu_loops
from hybridsnn.kernels.neuron.bits import worth_a_thread
from hybridsnn.kernels.neuron.halves import array
from hybridsnn.kernels.neuron.layout import Layout
from hybridsnn.kernels.neuron.slopes import SHAPES, SPIKE_TIME
from hybridsnn.kernels.neuron.surrogate import Surrogate, shape_of
from hybridsnn.kernels.threads import over_ranges


def supports(current: Tensor) -> bool:
    """Whether this kernel runs such currents: any floating type on the CPU (halves are widened)."""
    return current.device.type == "cpu" and current.dtype.is_floating_point


def _state(layout: Layout, values: Tensor) -> Tensor:
    """`[B, *N]` as `[neurons]` in the order of memory, or as `[1]` if all are one number."""
    same = values.numel() > 0 and not any(values.stride())
    return values.flatten()[:1] if same else layout.row(values)


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
    layout, dtype = Layout(current), current.dtype
    if dtype == torch.float16:
        current = current.float()
    rows = layout.rows(current)
    wide = torch.promote_types(current.dtype, torch.float32)
    level, level_group = layout.group(threshold.to(wide))
    decay, decay_group = layout.group(leak.to(wide))
    steps, neurons = layout.steps, rows.shape[1]
    spikes = rows if overwrite and len(rows) == steps else torch.empty(steps, neurons, dtype=rows.dtype)
    bits = torch.empty((steps + 7) // 8 if pack else 0, neurons, dtype=torch.uint8)
    kept = torch.empty(steps if potentials else 0, neurons, dtype=wide)
    final_membrane, final_since = torch.empty(neurons, dtype=wide), torch.empty(neurons, dtype=torch.int32)
    over_ranges(
        cpu_loops.forward, neurons, worth_a_thread(steps),
        array(rows), level.contiguous().numpy(), level_group, decay.contiguous().numpy(), decay_group,
        _state(layout, membrane).to(wide).numpy(), _state(layout, since_spike).numpy(), hard_reset,
        array(spikes), bits.numpy(), kept.numpy(), final_membrane.numpy(), final_since.numpy(),
    )  # fmt: skip
    return (
        layout.restore(spikes).to(dtype),
        layout.restore(final_membrane.unsqueeze(0))[0],
        layout.restore(final_since.unsqueeze(0))[0],
        layout.restore(bits) if pack else None,
        layout.restore(kept) if potentials else None,
    )


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
    layout = Layout(bits)
    wide = torch.promote_types(grad_spikes.dtype, torch.float32)
    level, level_group = layout.group(threshold.to(wide))
    decay, decay_group = layout.group(leak.to(wide))
    shape = SHAPES[shape_of(surrogate, SHAPES, "numba")]
    clock = _state(layout, since_spike)
    steps, neurons = len(grad_spikes), bits[0].numel()
    if grad_spikes.stride(0) == 0:
        grad_spikes = grad_spikes.contiguous()  # a row for each step
    nothing = torch.empty(0, dtype=wide)
    table = nothing
    if shape == SPIKE_TIME:
        intervals = torch.arange(max(1, int(clock.max())) + 1, dtype=torch.float64)
        table = torch.exp(-surrogate.decay * intervals).to(wide)
    incoming = torch.zeros(1, dtype=wide) if grad_membrane is None else layout.row(grad_membrane).to(wide)
    kept = torch.empty(0, neurons, dtype=wide) if potentials is None else layout.rows(potentials).to(wide)
    rows = layout.rows(grad_spikes if grad_spikes.dtype != torch.float16 else grad_spikes.float())
    grad_current = rows if overwrite else torch.empty_like(rows)
    grad_start = torch.empty(neurons, dtype=wide)
    grad_threshold = torch.empty(neurons if learns_threshold else 0, dtype=wide)
    grad_leak = torch.zeros(neurons if learns_leak else 0, dtype=wide)
    over_ranges(
        cpu_loops.backward, neurons, worth_a_thread(steps),
        array(rows), incoming.numpy(), layout.rows(bits).numpy(), kept.numpy(),
        level.contiguous().numpy(), level_group, decay.contiguous().numpy(), decay_group,
        (layout.row(membrane).to(wide) if learns_leak and membrane is not None else nothing).numpy(), clock.numpy(),
        hard_reset, shape, table.numpy().dtype.type(surrogate.height), surrogate.relative,
        table.numpy(), array(grad_current), grad_start.numpy(), grad_threshold.numpy(), grad_leak.numpy(),
    )  # fmt: skip
    return (
        layout.restore(grad_current).to(grad_spikes.dtype),
        layout.restore(grad_start.unsqueeze(0))[0],
        layout.reduce(grad_threshold, threshold).to(threshold.dtype) if learns_threshold else None,
        layout.reduce(grad_leak, leak).to(leak.dtype) if learns_leak else None,
    )
