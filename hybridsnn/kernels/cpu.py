"""The neuron scan on a CPU: each block of neurons runs through all of time while it is in cache."""

from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch
from numba import extending, types
from torch import Tensor

from hybridsnn.kernels.exponential import exponential
from hybridsnn.kernels.layout import Layout
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


# bfloat16, which numpy lacks, is handed to the loops as 16-bit words: the upper half of a float32.
def _widened(row: Any, buffer: Any) -> Any:
    """A row as floats: itself, or bfloat16 widened into the buffer."""
    raise NotImplementedError  # for compiled code only


def _narrowed(flags: Any, row: Any) -> None:
    """Write zeros and ones to a row of floats, or of bfloat16."""
    raise NotImplementedError


@extending.overload(_widened)
def _compile_widened(row, buffer):  # type: ignore[no-untyped-def]
    if row.dtype != types.uint16:
        return lambda row, buffer: row

    def widen(row, buffer):  # type: ignore[no-untyped-def]
        words = buffer.view(np.uint32)
        for i in range(row.size):
            words[i] = np.uint32(row[i]) << np.uint32(16)
        return buffer

    return widen


@extending.overload(_narrowed)
def _compile_narrowed(flags, row):  # type: ignore[no-untyped-def]
    if row.dtype != types.uint16:

        def copy(flags, row):  # type: ignore[no-untyped-def]
            for i in range(row.size):
                row[i] = flags[i]

        return copy

    def narrow(flags, row):  # type: ignore[no-untyped-def]
        words = flags.view(np.uint32)
        for i in range(row.size):
            row[i] = np.uint16(words[i] >> np.uint32(16))

    return narrow


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
    bits,
    potentials,
    final_membrane,
    final_since,
):
    """Spikes may be the memory of the currents: each row is read before it is written."""
    steps = spikes.shape[0]
    zero, one = membrane.dtype.type(0), membrane.dtype.type(1)
    for low in range(begin, end, BLOCK):
        high = min(end, low + BLOCK)
        size = high - low
        level = np.empty(size, membrane.dtype)
        keep = np.empty(size, membrane.dtype)
        spread(threshold, threshold_group, low, level)
        spread(leak, leak_group, low, keep)
        rest = membrane[low:high].copy()
        clock = since[low:high].astype(membrane.dtype)  # counts as floats, which fill the same vectors as the membranes
        wide = np.empty(size, membrane.dtype)
        out = np.empty(size, membrane.dtype)
        byte = np.zeros(size, membrane.dtype)
        for t in range(steps):
            # A current that is the same at every step comes as a single row.
            row = _widened(current[t if current.shape[0] > 1 else 0, low:high], wide)
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
            _narrowed(out, spikes[t, low:high])
            if bits.shape[0] > 0:
                weight = membrane.dtype.type(1 << (t & 7))
                for i in range(size):
                    byte[i] += weight * out[i]
                if t & 7 == 7 or t == steps - 1:
                    word = bits[t >> 3, low:high]
                    for i in range(size):
                        word[i] = np.uint8(byte[i])
                        byte[i] = zero
        final_membrane[low:high] = rest
        final_since[low:high] = clock


@numba.njit(cache=True, nogil=True)
def _backward(  # type: ignore[no-untyped-def]
    begin,
    end,
    grad_spikes,
    grad_final,
    bits,
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
    steps = grad_current.shape[0]
    zero, one = grad_current.dtype.type(0), grad_current.dtype.type(1)
    for low in range(begin, end, BLOCK):
        high = min(end, low + BLOCK)
        size = high - low
        level = np.empty(size, grad_current.dtype)
        keep = np.empty(size, grad_current.dtype)
        slope = np.empty(size, grad_current.dtype)
        spike = np.empty(size, grad_current.dtype)
        spread(threshold, threshold_group, low, level)
        spread(leak, leak_group, low, keep)
        width = level if relative else np.ones_like(level)
        scale = height / width
        # Forward in time: the gradient that enters the membrane at each step, spike gradient times slope.
        clock = since[low:high].copy()
        for t in range(steps):
            if shape == 0:
                word, place = bits[t >> 3, low:high], np.uint8(t & 7)
                for i in range(size):
                    slope[i] = scale[i] * table[clock[i]]
                    fired = (word[i] >> place) & np.uint8(1)
                    clock[i] = np.int32(1) if fired else clock[i] + np.int32(1)
            else:
                potential = potentials[t, low:high]
                if shape == 1:
                    for i in range(size):
                        slope[i] = scale[i] * max(zero, one - abs(potential[i] - level[i]) / width[i])
                else:
                    for i in range(size):
                        slope[i] = scale[i] * exponential(-abs(potential[i] - level[i]) / width[i])
            entering = grad_current[t, low:high]
            if grad_spikes.size > 0:
                incoming = grad_spikes[t, low:high]
                for i in range(size):
                    entering[i] = incoming[i] * slope[i]
            else:  # they lie where the gradients of the currents go
                for i in range(size):
                    entering[i] *= slope[i]
        # Backward in time: the leak carries it to earlier steps. The reset is not differentiated.
        carried = grad_final[low:high].copy()
        per_threshold = np.zeros(size, grad_current.dtype)
        for t in range(steps - 1, -1, -1):
            entering = grad_current[t, low:high]
            if hard or grad_threshold.size > 0:
                _spikes_of(bits, t, low, spike)
            if grad_threshold.size > 0:
                if hard:
                    for i in range(size):
                        per_threshold[i] -= entering[i]
                else:
                    for i in range(size):
                        per_threshold[i] -= entering[i] + carried[i] * spike[i]
            if hard:
                for i in range(size):
                    entering[i] += carried[i] * (one - spike[i])
                    carried[i] = keep[i] * entering[i]
            else:
                for i in range(size):
                    entering[i] += carried[i]
                    carried[i] = keep[i] * entering[i]
            if grad_leak.size > 0:
                if t == 0:
                    for i in range(size):
                        grad_leak[low + i] += entering[i] * membrane[low + i]
                else:
                    _spikes_of(bits, t - 1, low, spike)
                    before = potentials[t - 1, low:high]
                    for i in range(size):
                        lost = before[i] * spike[i] if hard else level[i] * spike[i]
                        grad_leak[low + i] += entering[i] * (before[i] - lost)
        grad_membrane[low:high] = carried
        if grad_threshold.size > 0:
            grad_threshold[low:high] = per_threshold


@numba.njit(cache=True, nogil=True)
def _spikes_of(bits, t, low, spike):  # type: ignore[no-untyped-def]
    """The spikes of the neurons low, low + 1, ... at step t, as floats."""
    word, place = bits[t >> 3], np.uint8(t & 7)
    for i in range(spike.size):
        spike[i] = (word[low + i] >> place) & np.uint8(1)


@numba.njit(cache=True, nogil=True)
def _unpack(begin, end, bits, spikes):  # type: ignore[no-untyped-def]
    row = np.empty(BLOCK, np.float32)
    for low in range(begin, end, BLOCK):
        high = min(end, low + BLOCK)
        for t in range(spikes.shape[0]):
            flags = row[: high - low]
            _spikes_of(bits, t, low, flags)
            _narrowed(flags, spikes[t, low:high])


@numba.njit(cache=True, nogil=True)
def _advance(begin, end, bits, steps, since):  # type: ignore[no-untyped-def]
    for low in range(begin, end, BLOCK):
        clock = since[low : min(end, low + BLOCK)]
        for t in range(steps):
            word, place = bits[t >> 3, low : low + clock.size], np.uint8(t & 7)
            for i in range(clock.size):
                fired = (word[i] >> place) & np.uint8(1)
                clock[i] = np.int32(1) if fired else clock[i] + np.int32(1)


def _worth_a_thread(steps: int) -> int:
    """How many neurons, in whole blocks, are worth waking a thread for."""
    return BLOCK * max(1, THREAD // (BLOCK * steps))


def _array(values: Tensor) -> Any:
    """A tensor's memory as a numpy array."""
    return values.view(torch.uint16).numpy() if values.dtype == torch.bfloat16 else values.numpy()


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
    """See `hybridsnn.kernels.Kernel`."""
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
        _forward, neurons, _worth_a_thread(steps),
        _array(rows), level.contiguous().numpy(), level_group, decay.contiguous().numpy(), decay_group,
        layout.row(membrane).to(wide).numpy(), layout.row(since_spike).numpy(), hard_reset,
        _array(spikes), bits.numpy(), kept.numpy(), final_membrane.numpy(), final_since.numpy(),
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
    surrogate: "Surrogate",
    *,
    learns_threshold: bool,
    learns_leak: bool,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """See `hybridsnn.kernels.Kernel`."""
    layout = Layout(bits)
    wide = torch.promote_types(grad_spikes.dtype, torch.float32)
    level, level_group = layout.group(threshold.to(wide))
    decay, decay_group = layout.group(leak.to(wide))
    clock = layout.row(since_spike)
    steps, neurons = len(grad_spikes), len(clock)
    if grad_spikes.stride(0) == 0:
        grad_spikes = grad_spikes.contiguous()  # a row for each step
    nothing = torch.empty(0, dtype=wide)
    table = nothing
    if surrogate.shape == "spike-time":
        intervals = torch.arange(int(clock.max()) + steps + 1, dtype=torch.float64)
        table = torch.exp(-surrogate.decay * intervals).to(wide)
    incoming = torch.zeros(neurons, dtype=wide) if grad_membrane is None else layout.row(grad_membrane).to(wide)
    kept = torch.empty(0, neurons, dtype=wide) if potentials is None else layout.rows(potentials).to(wide)
    rows = layout.rows(grad_spikes).to(wide)
    grad_current = rows if overwrite else torch.empty_like(rows)
    grad_start = torch.empty(neurons, dtype=wide)
    grad_threshold = torch.empty(neurons if learns_threshold else 0, dtype=wide)
    grad_leak = torch.zeros(neurons if learns_leak else 0, dtype=wide)
    over_ranges(
        _backward, neurons, _worth_a_thread(steps),
        (rows[:0] if overwrite else rows).numpy(), incoming.numpy(), layout.rows(bits).numpy(), kept.numpy(),
        level.contiguous().numpy(), level_group, decay.contiguous().numpy(), decay_group,
        (layout.row(membrane).to(wide) if learns_leak and membrane is not None else nothing).numpy(), clock.numpy(),
        hard_reset, SHAPES[surrogate.shape], table.numpy().dtype.type(surrogate.height), surrogate.relative,
        table.numpy(), grad_current.numpy(), grad_start.numpy(), grad_threshold.numpy(), grad_leak.numpy(),
    )  # fmt: skip
    return (
        layout.restore(grad_current).to(grad_spikes.dtype),
        layout.restore(grad_start.unsqueeze(0))[0],
        layout.reduce(grad_threshold, threshold).to(threshold.dtype) if learns_threshold else None,
        layout.reduce(grad_leak, leak).to(leak.dtype) if learns_leak else None,
    )


def unpack(bits: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """See `hybridsnn.kernels.Kernel`."""
    layout = Layout(bits)
    rows = layout.rows(bits)
    spikes = torch.empty(steps, rows.shape[1], dtype=torch.float32 if dtype == torch.float16 else dtype)
    over_ranges(_unpack, rows.shape[1], _worth_a_thread(steps), rows.numpy(), _array(spikes))
    return layout.restore(spikes).to(dtype)


def advance(since_spike: Tensor, bits: Tensor, steps: int) -> Tensor:
    """See `hybridsnn.kernels.Kernel`."""
    layout = Layout(bits)
    clock = layout.row(since_spike).clone()
    over_ranges(_advance, len(clock), _worth_a_thread(steps), layout.rows(bits).numpy(), steps, clock.numpy())
    return layout.restore(clock.unsqueeze(0))[0]
