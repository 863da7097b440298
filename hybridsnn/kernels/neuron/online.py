"""One step of a layer of neurons that knows how its membrane depends on its threshold and its leak.

    U = leak * V' + I,   s = 1 if U >= threshold else 0,   V = U - threshold * s          (V': V of the step before)
    dV/dthreshold = leak * (dV/dthreshold)' - s,   dV/dleak = leak * (dV/dleak)' + V'

with the spikes of the reset taken as constants. In the notation of STOP (docs/stop.md) the trace of the
threshold is `dV/dthreshold + s` and that of the leak is `dV/dleak`; `U` is `V + threshold * s`. So the state after
the reset is all that the backward pass of the same step needs, and nothing else is kept.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridsnn.errors import ConfigError
from hybridsnn.kernels.compilation import compiled
from hybridsnn.kernels.neuron import choose
from hybridsnn.kernels.neuron.bits import BLOCK, worth_a_thread
from hybridsnn.kernels.neuron.cpu_loops import spread
from hybridsnn.kernels.neuron.layout import Layout, reduce_to
from hybridsnn.kernels.neuron.reference import broadcast
from hybridsnn.kernels.neuron.slopes import SHAPES, heights, slopes
from hybridsnn.kernels.neuron.surrogate import Surrogate, shape_of
from hybridsnn.kernels.threads import over_ranges


@dataclass
class OnlineState:
    """A layer's membranes after their reset, and how they depend on its parameters; all `[B, *N]`, changed in place.

    Attributes:
        membrane: `V`.
        by_threshold: `dV/dthreshold`, None where thresholds do not learn.
        by_leak: `dV/dleak`, None where the leak does not learn.
    """

    membrane: Tensor
    by_threshold: Tensor | None
    by_leak: Tensor | None


def start(membrane: Tensor, *, threshold_learns: bool, leak_learns: bool, current: Tensor | None = None) -> OnlineState:
    """The state before the first step, at membranes `[B, *N]`; all traces are 0.

    It lies in memory as the currents of the first step do, if they are given, else as the membranes.
    """
    layout = Layout((membrane if current is None else current).unsqueeze(0))

    def dense(row: Tensor) -> Tensor:
        """Samples follow each other in memory, so that the state can be changed in place as one row."""
        return layout.restore(row.unsqueeze(0))[0]

    row = layout.row(membrane).clone()
    return OnlineState(
        dense(row),
        dense(torch.zeros_like(row)) if threshold_learns else None,
        dense(torch.zeros_like(row)) if leak_learns else None,
    )


def step(
    current: Tensor,
    threshold: Tensor,
    leak: Tensor,
    state: OnlineState,
    surrogate: Surrogate,
    *,
    kernel: str = "auto",
) -> Tensor:
    """One step of a layer of neurons; its backward pass gives STOP's gradients of this step.

    The gradient of `current` is `g * ds/dU`; that of the threshold adds `g * ds/dU * (trace - 1)` over the neurons
    that share it, that of the leak `g * ds/dU * trace`. It must run before the next step, which changes the state.

    Args:
        current: `[B, *N]`.
        threshold: `[]`, `[channels]` or `[*N]`.
        leak: `[]`.
        state: after the step before; is changed in place. Of the type of the currents, float32 at least.
        surrogate: gives `ds/dU`; one of the distance to the threshold.
        kernel: "auto", or a name in `hybridsnn.kernels.neuron.KERNELS`.

    Returns:
        spikes `[B, *N]`, 0 or 1, in the type of `current`.

    Raises:
        ConfigError: if the kernel is unknown, or cannot run these tensors or this surrogate.
    """
    if surrogate.needs_clock:
        raise ConfigError(
            f"surrogate: got '{surrogate.name}', must be one of the distance to the threshold; a step knows no clock"
        )
    backend = _Compiled if choose(kernel, current, surrogate).name == "numba" else _Plain
    # Membranes are float32 or wider, whatever the synapses run in.
    wide = current.to(state.membrane.dtype)
    return backend.apply(wide, threshold, leak, state, surrogate).to(current.dtype)


class _Plain(torch.autograd.Function):
    """The definition, in PyTorch."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, threshold: Tensor, leak: Tensor, state: OnlineState,
                surrogate: Surrogate) -> Tensor:  # fmt: skip
        ctx.state, ctx.surrogate = state, surrogate
        level = broadcast(threshold, current.unsqueeze(0))
        if state.by_leak is not None:
            state.by_leak.mul_(leak).add_(state.membrane)
        state.membrane.mul_(leak).add_(current)
        spikes = (state.membrane >= level).to(current.dtype)
        state.membrane.sub_(level * spikes)
        if state.by_threshold is not None:
            state.by_threshold.mul_(leak).sub_(spikes)
        ctx.save_for_backward(spikes, threshold)
        return spikes

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        spikes, threshold = ctx.saved_tensors
        state = ctx.state
        level = broadcast(threshold, spikes.unsqueeze(0)).expand_as(spikes)
        membrane = state.membrane + level * spikes
        error = gradients[0] * ctx.surrogate.slope(membrane, level, torch.zeros_like(level))
        by_threshold = by_leak = None
        if ctx.needs_input_grad[1]:
            by_threshold = reduce_to(error * (state.by_threshold + spikes - 1), threshold)
        if ctx.needs_input_grad[2]:
            by_leak = (error * state.by_leak).sum()
        return error, by_threshold, by_leak, None, None


@compiled(nogil=True)
def _forward(  # type: ignore[no-untyped-def]
    begin, end, current, threshold, group, leak, membrane, by_threshold, by_leak, spikes
):
    zero, one = spikes.dtype.type(0), spikes.dtype.type(1)
    for low in range(begin, end, BLOCK):
        high = min(end, low + BLOCK)
        size = high - low
        level = np.empty(size, spikes.dtype)
        spread(threshold, group, low, level)
        row, rest, out = current[low:high], membrane[low:high], spikes[low:high]
        if by_leak.size > 0:
            slope = by_leak[low:high]
            for i in range(size):
                slope[i] = leak * slope[i] + rest[i]
        for i in range(size):
            value = leak * rest[i] + row[i]
            fired = value >= level[i]
            out[i] = one if fired else zero
            rest[i] = value - (level[i] if fired else zero)
        if by_threshold.size > 0:
            slope = by_threshold[low:high]
            for i in range(size):
                slope[i] = leak * slope[i] - out[i]


@compiled(nogil=True)
def _backward(  # type: ignore[no-untyped-def]
    begin, end, incoming, threshold, group, membrane, by_threshold, by_leak, spikes, shape, height, relative, errors
):
    one = spikes.dtype.type(1)
    lines = np.empty((4, BLOCK), spikes.dtype)
    grad_threshold = np.zeros(threshold.size if by_threshold.size > 0 else 0, np.float64)
    grad_leak = np.zeros(1, np.float64)
    # Sums run along blocks, one for each place in a block, so that the compiler makes vectors of them.
    threshold_sums = np.zeros(BLOCK, np.float64)
    leak_sums = np.zeros(BLOCK, np.float64)
    for low in range(begin, end, BLOCK):
        high = min(end, low + BLOCK)
        size = high - low
        level, width, scale, potential = lines[0, :size], lines[1, :size], lines[2, :size], lines[3, :size]
        spread(threshold, group, low, level)
        heights(level, height, relative, width, scale)
        rest, spike, gradient, error = membrane[low:high], spikes[low:high], incoming[low:high], errors[low:high]
        for i in range(size):
            potential[i] = rest[i] + level[i] * spike[i]
        slopes(shape, potential, level, width, scale, error)
        for i in range(size):
            error[i] *= gradient[i]
        if by_threshold.size > 0:
            trace = by_threshold[low:high]
            if threshold.size == 1:
                for i in range(size):
                    threshold_sums[i] += error[i] * (trace[i] + spike[i] - one)
            else:
                place = (low // group) % threshold.size
                left = group - low % group
                for i in range(size):
                    grad_threshold[place] += error[i] * (trace[i] + spike[i] - one)
                    left -= 1
                    if left == 0:
                        place = place + 1 if place + 1 < threshold.size else 0
                        left = group
        if by_leak.size > 0:
            trace = by_leak[low:high]
            for i in range(size):
                leak_sums[i] += error[i] * trace[i]
    if by_threshold.size > 0 and threshold.size == 1:
        grad_threshold[0] = threshold_sums.sum()
    grad_leak[0] = leak_sums.sum()
    return grad_threshold, grad_leak


def _flat(layout: Layout, values: Tensor | None, like: Tensor) -> Any:
    """State `[B, *N]` as the numpy array of its memory, which the kernels change; an empty one for None."""
    return like.new_empty(0).numpy() if values is None else layout.row(values).numpy()


class _Compiled(torch.autograd.Function):
    """One pass over memory for each direction."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, threshold: Tensor, leak: Tensor, state: OnlineState,
                surrogate: Surrogate) -> Tensor:  # fmt: skip
        # The state keeps the order in memory that the currents had at the first step, so that it is changed in place.
        layout = Layout(state.membrane.unsqueeze(0))
        row = layout.row(current)
        level, group = layout.group(threshold)
        spikes = torch.empty_like(row)
        over_ranges(
            _forward, len(row), worth_a_thread(1),
            row.numpy(), level.contiguous().numpy(), group, leak.to(row.dtype).numpy()[()],
            _flat(layout, state.membrane, row), _flat(layout, state.by_threshold, row),
            _flat(layout, state.by_leak, row), spikes.numpy(),
        )  # fmt: skip
        ctx.state, ctx.surrogate = state, surrogate
        out = layout.restore(spikes.unsqueeze(0))[0]
        ctx.save_for_backward(out, threshold)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        spikes, threshold = ctx.saved_tensors
        state, surrogate = ctx.state, ctx.surrogate
        shape = SHAPES[shape_of(surrogate, SHAPES, "numba")]
        layout = Layout(state.membrane.unsqueeze(0))
        level, group = layout.group(threshold)
        rows = layout.row(spikes)
        errors = torch.empty_like(rows)
        needs_threshold, needs_leak = ctx.needs_input_grad[1:3]
        sums = over_ranges(
            _backward, len(rows), worth_a_thread(1),
            layout.row(gradients[0]).numpy(), level.contiguous().numpy(), group,
            _flat(layout, state.membrane, rows),
            _flat(layout, state.by_threshold if needs_threshold else None, rows),
            _flat(layout, state.by_leak if needs_leak else None, rows),
            rows.numpy(), shape, rows.numpy().dtype.type(surrogate.height), surrogate.relative, errors.numpy(),
        )  # fmt: skip
        by_threshold = by_leak = None
        if needs_threshold:
            flat = torch.from_numpy(np.sum([part[0] for part in sums], axis=0)).to(threshold.dtype)
            by_threshold = layout.ungroup(flat, threshold)
        if needs_leak:
            by_leak = torch.tensor(math.fsum(float(part[1][0]) for part in sums), dtype=threshold.dtype)
        return layout.restore(errors.unsqueeze(0))[0], by_threshold, by_leak, None, None
