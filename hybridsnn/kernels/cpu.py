"""The neuron scan on a CPU: each block of neurons runs through all of time while it is in cache."""

import math
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch
from torch import Tensor

from hybridsnn.kernels.threads import over_ranges

if TYPE_CHECKING:
    from hybridsnn.kernels import Surrogate

BLOCK = 1024  # neurons per block: membranes, clocks and parameters of one block stay in the first-level cache
THREAD = 128 * BLOCK  # neurons, times steps, that are worth waking a thread for: it takes a tenth of a millisecond
SHAPES = {"spike-time": 0, "triangle": 1, "exponential": 2}


def supports(current: Tensor) -> bool:
    """Whether this kernel runs such currents: any floating type on the CPU (halves are widened)."""
    return current.device.type == "cpu" and current.dtype.is_floating_point


@numba.njit(cache=True)
def spread(parameter, group, start, values):  # type: ignore[no-untyped-def]
    """Write the parameter of neurons start, start + 1, ... into `values`.

    The neurons of a parameter lie in runs of `group`, and the runs repeat over the batch.
    """
    if parameter.size == 1:
        values[:] = parameter[0]
        return
    place = (start // group) % parameter.size
    left = group - start % group
    for i in range(values.size):
        values[i] = parameter[place]
        left -= 1
        if left == 0:
            place = place + 1 if place + 1 < parameter.size else 0
            left = group


@numba.njit(cache=True, nogil=True)
def _forward(  # type: ignore[no-untyped-def]
    begin,
    end,
    current,
    threshold,
    threshold_group,
    leak,
    leak_group,
    membrane,
    since,
    hard,
    spikes,
    potentials,
    final_membrane,
    final_since,
):
    steps = spikes.shape[0]
    zero, one = spikes.dtype.type(0), spikes.dtype.type(1)
    for low in range(begin, end, BLOCK):
        high = min(end, low + BLOCK)
        size = high - low
        level = np.empty(size, current.dtype)
        keep = np.empty(size, current.dtype)
        spread(threshold, threshold_group, low, level)
        spread(leak, leak_group, low, keep)
        rest = membrane[low:high].copy()
        clock = since[low:high].astype(spikes.dtype)  # counts as floats, which fill the same vectors as the membranes
        for t in range(steps):
            # A current that is the same at every step comes as a single row.
            row = current[t if current.shape[0] > 1 else 0, low:high]
            out = spikes[t, low:high]
            if potentials.shape[0] > 0:
                potential = potentials[t, low:high]
                for i in range(size):
                    potential[i] = keep[i] * rest[i] + row[i]
            # One loop for each reset, without branches inside, so that the compiler makes vectors of them.
            if hard:
                for i in range(size):
                    value = keep[i] * rest[i] + row[i]
                    fired = value >= level[i]
                    out[i] = one if fired else zero
                    rest[i] = zero if fired else value
                    clock[i] = one if fired else clock[i] + one
            else:
                for i in range(size):
                    value = keep[i] * rest[i] + row[i]
                    fired = value >= level[i]
                    out[i] = one if fired else zero
                    rest[i] = value - (level[i] if fired else zero)
                    clock[i] = one if fired else clock[i] + one
        final_membrane[low:high] = rest
        final_since[low:high] = clock


@numba.njit(cache=True, nogil=True)
def _backward(  # type: ignore[no-untyped-def]
    begin,
    end,
    grad_spikes,
    grad_final,
    spikes,
    potentials,
    threshold,
    threshold_group,
    leak,
    leak_group,
    membrane,
    since,
    hard,
    shape,
    height,
    relative,
    table,
    grad_current,
    grad_membrane,
    grad_threshold,
    grad_leak,
):
    steps = spikes.shape[0]
    zero, one, first = spikes.dtype.type(0), spikes.dtype.type(1), np.int32(1)
    for low in range(begin, end, BLOCK):
        high = min(end, low + BLOCK)
        size = high - low
        level = np.empty(size, grad_spikes.dtype)
        keep = np.empty(size, grad_spikes.dtype)
        spread(threshold, threshold_group, low, level)
        spread(leak, leak_group, low, keep)
        width = level if relative else np.ones_like(level)
        scale = height / width
        # Forward in time: the gradient that enters the membrane at each step, spike gradient times slope.
        clock = since[low:high].copy()
        for t in range(steps):
            incoming = grad_spikes[t, low:high]
            entering = grad_current[t, low:high]
            spike = spikes[t, low:high]
            if shape == 0:
                for i in range(size):
                    entering[i] = incoming[i] * (scale[i] * table[clock[i]])
                    clock[i] = first if spike[i] > zero else clock[i] + first
            else:
                potential = potentials[t, low:high]
                for i in range(size):
                    distance = abs(potential[i] - level[i]) / width[i]
                    slope = max(zero, one - distance) if shape == 1 else math.exp(-distance)
                    entering[i] = incoming[i] * (scale[i] * slope)
        # Backward in time: the leak carries it to earlier steps. The reset is not differentiated.
        carried = grad_final[low:high].copy()
        for t in range(steps - 1, -1, -1):
            entering = grad_current[t, low:high]
            spike = spikes[t, low:high]
            per_threshold = grad_threshold[low:high]
            if hard:
                for i in range(size):
                    per_threshold[i] -= entering[i]
                    entering[i] += carried[i] * (one - spike[i])
                    carried[i] = keep[i] * entering[i]
            else:
                for i in range(size):
                    per_threshold[i] -= entering[i] + carried[i] * spike[i]
                    entering[i] += carried[i]
                    carried[i] = keep[i] * entering[i]
            if potentials.shape[0] > 0:
                for i in range(size):
                    if t == 0:
                        before = membrane[low + i]
                    elif hard:
                        before = potentials[t - 1, low + i] * (1 - spikes[t - 1, low + i])
                    else:
                        before = potentials[t - 1, low + i] - level[i] * spikes[t - 1, low + i]
                    grad_leak[low + i] += entering[i] * before
        grad_membrane[low:high] = carried


def reduce_to(values: Tensor, parameter: Tensor) -> Tensor:
    """Sum values `[B, *N]` over the neurons that share a parameter `[]`, `[channels]` or `[*N]`."""
    if parameter.dim() == 0:
        return values.sum()
    return values.sum(dim=[0, *range(2, values.dim())] if parameter.dim() == 1 else 0)


class Layout:
    """How the neurons of a tensor `[T, B, *N]` lie in memory, so that no path has to reorder them."""

    def __init__(self, current: Tensor):
        strides = current.stride()[2:]
        # The features of one sample, from the slowest to the fastest: (0, 1, 2), or (1, 2, 0) in channels-last.
        self.order = sorted(range(len(strides)), key=lambda axis: -strides[axis])
        self.steps = current.shape[0]
        self.sample = tuple(current.shape[2:])

    def rows(self, values: Tensor) -> Tensor:
        """`[T, B, *N]` as `[T, neurons]` in memory order; a tensor that is constant in time gives one row."""
        if values.shape[0] > 1 and values.stride(0) == 0:
            values = values[:1]
        return values.permute(0, 1, *(axis + 2 for axis in self.order)).reshape(values.shape[0], -1).contiguous()

    def row(self, values: Tensor) -> Tensor:
        """`[B, *N]` as `[neurons]` in memory order."""
        return self.rows(values.unsqueeze(0))[0]

    def restore(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`: `[T, neurons]` as a view `[T, B, *N]`."""
        permuted = rows.view(rows.shape[0], -1, *(self.sample[axis] for axis in self.order))
        back = [2 + self.order.index(axis) for axis in range(len(self.order))]
        return permuted.permute(0, 1, *back)

    def group(self, parameter: Tensor) -> tuple[Tensor, int]:
        """A parameter as a flat tensor, and how many neighbouring neurons share each of its entries."""
        if parameter.dim() == 0:
            return parameter.view(1), 1
        if parameter.dim() == 1:
            return parameter, math.prod(self.sample[axis] for axis in self.order[self.order.index(0) + 1 :])
        return parameter.permute(self.order).reshape(-1), 1

    def ungroup(self, values: Tensor, parameter: Tensor) -> Tensor:
        """The inverse of `group`: one value for each entry of a parameter, in the parameter's own shape."""
        if parameter.dim() < 2:
            return values.view(parameter.shape)
        back = [self.order.index(axis) for axis in range(len(self.order))]
        return values.view([self.sample[axis] for axis in self.order]).permute(back)

    def reduce(self, per_neuron: Tensor, parameter: Tensor) -> Tensor:
        """Sum gradients `[neurons]` over the neurons that share a parameter."""
        return reduce_to(self.restore(per_neuron.unsqueeze(0))[0], parameter)


def _worth_a_thread(steps: int) -> int:
    """How many neurons, in whole blocks, are worth waking a thread for."""
    return BLOCK * max(1, THREAD // (BLOCK * steps))


def _run(
    current: Tensor, threshold: Tensor, leak: Tensor, membrane: Tensor, since: Tensor, hard: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Forward pass: spikes `[T, B, *N]`, final membrane and clock `[B, *N]`, membranes `[T or 0, neurons]`."""
    layout = Layout(current)
    rows = layout.rows(current.detach())
    level, level_group = layout.group(threshold.detach())
    decay, decay_group = layout.group(leak.detach())
    neurons = rows.shape[1]
    spikes = torch.empty(layout.steps, neurons, dtype=rows.dtype)
    potentials = torch.empty(layout.steps if keep else 0, neurons, dtype=rows.dtype)
    final_membrane = torch.empty(neurons, dtype=rows.dtype)
    final_since = torch.empty(neurons, dtype=torch.int32)
    over_ranges(
        _forward, neurons, _worth_a_thread(layout.steps),
        rows.numpy(), level.contiguous().numpy(), level_group, decay.contiguous().numpy(), decay_group,
        layout.row(membrane.detach()).numpy(), layout.row(since).numpy(), hard,
        spikes.numpy(), potentials.numpy(), final_membrane.numpy(), final_since.numpy(),
    )  # fmt: skip
    return (
        layout.restore(spikes),
        layout.restore(final_membrane.unsqueeze(0))[0],
        layout.restore(final_since.unsqueeze(0))[0],
        potentials,
    )


class _Scan(torch.autograd.Function):
    """The scan with its gradients. The spike-time surrogate keeps spikes only, the others the membranes too."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, threshold: Tensor, leak: Tensor, membrane: Tensor, since: Tensor,
                hard: bool, surrogate: "Surrogate") -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        keep = surrogate.needs_membrane or ctx.needs_input_grad[2]
        spikes, final_membrane, final_since, potentials = _run(current, threshold, leak, membrane, since, hard, keep)
        ctx.save_for_backward(spikes, potentials, threshold, leak, membrane if keep else None, since)
        ctx.hard, ctx.surrogate = hard, surrogate
        ctx.mark_non_differentiable(final_since)
        return spikes, final_membrane, final_since

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        spikes, potentials, threshold, leak, membrane, since = ctx.saved_tensors
        surrogate = ctx.surrogate
        layout = Layout(spikes)
        level, level_group = layout.group(threshold.detach())
        decay, decay_group = layout.group(leak.detach())
        spike_rows = layout.rows(spikes)
        incoming = gradients[0].contiguous() if gradients[0].stride(0) == 0 else gradients[0]  # a row for each step
        clock = layout.row(since)
        start = layout.row(membrane) if membrane is not None else torch.zeros(0, dtype=spike_rows.dtype)
        table = torch.zeros(1, dtype=spike_rows.dtype)
        if surrogate.shape == "spike-time":
            intervals = torch.arange(int(clock.max()) + layout.steps + 1, dtype=torch.float64)
            table = torch.exp(-surrogate.decay * intervals).to(spike_rows.dtype)
        grad_current = torch.empty_like(spike_rows)
        grad_membrane = torch.empty_like(spike_rows[0])
        grad_threshold, grad_leak = torch.zeros_like(grad_membrane), torch.zeros_like(grad_membrane)
        over_ranges(
            _backward, spike_rows.shape[1], _worth_a_thread(layout.steps),
            layout.rows(incoming).numpy(), layout.row(gradients[1]).numpy(), spike_rows.numpy(), potentials.numpy(),
            level.contiguous().numpy(), level_group, decay.contiguous().numpy(), decay_group,
            start.numpy(), clock.numpy(), ctx.hard, SHAPES[surrogate.shape],
            spike_rows.numpy().dtype.type(surrogate.height), surrogate.relative, table.numpy(),
            grad_current.numpy(), grad_membrane.numpy(), grad_threshold.numpy(), grad_leak.numpy(),
        )  # fmt: skip
        return (
            layout.restore(grad_current),
            layout.reduce(grad_threshold, threshold) if ctx.needs_input_grad[1] else None,
            layout.reduce(grad_leak, leak) if ctx.needs_input_grad[2] else None,
            layout.restore(grad_membrane.unsqueeze(0))[0] if ctx.needs_input_grad[3] else None,
            None,
            None,
            None,
        )


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
    if surrogate is None or not torch.is_grad_enabled():
        return _run(current, threshold, leak, membrane, since_spike, hard_reset, keep=False)[:3]
    return _Scan.apply(current, threshold, leak, membrane, since_spike, hard_reset, surrogate)
