"""The neuron scan on a CPU: each block of neurons runs through all of time while it is in cache."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch
from numba import extending, types
from torch import Tensor

from hybridsnn.kernels.neuron.exponential import exponential, sigmoid_slope
from hybridsnn.kernels.neuron.layout import Layout
from hybridsnn.kernels.threads import over_ranges

if TYPE_CHECKING:
    from hybridsnn.kernels.neuron import Surrogate

BLOCK = 1024  # neurons per block: membranes, clocks and parameters of one block stay in the first-level cache
THREAD = 128 * BLOCK  # neurons, times steps, that are worth waking a thread for: it takes a tenth of a millisecond
SHAPES = {"spike-time": 0, "triangle": 1, "exponential": 2, "sigmoid": 3}


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


# What a block of neurons works with lies in one array, line after line of `BLOCK` values. Lines are then known to be
# apart, so that the compiler makes vectors of the loops; of as many separate arrays it would have to ask each time.


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
    work = np.empty(8 * BLOCK, membrane.dtype)
    level, keep, rest, clock, value, out, byte = 0, BLOCK, 2 * BLOCK, 3 * BLOCK, 4 * BLOCK, 5 * BLOCK, 6 * BLOCK
    wide = work[7 * BLOCK :]
    for low in range(begin, end, BLOCK):
        high = min(end, low + BLOCK)
        size = high - low
        spread(threshold, threshold_group, low, work[level : level + size])
        spread(leak, leak_group, low, work[keep : keep + size])
        work[rest : rest + size] = membrane[low:high]
        work[clock : clock + size] = since[low:high]  # counts as floats, which fill the same vectors as the membranes
        work[byte : byte + size] = zero
        for t in range(steps):
            # A current that is the same at every step comes as a single row.
            row = _widened(current[t if current.shape[0] > 1 else 0, low:high], wide)
            for i in range(size):
                work[value + i] = work[keep + i] * work[rest + i] + row[i]
            if potentials.shape[0] > 0:
                potentials[t, low:high] = work[value : value + size]
            # One loop for each reset, without branches inside.
            if hard:
                for i in range(size):
                    fired = work[value + i] >= work[level + i]
                    work[out + i] = one if fired else zero
                    work[rest + i] = zero if fired else work[value + i]
                    work[clock + i] = one if fired else work[clock + i] + one
            else:
                for i in range(size):
                    fired = work[value + i] >= work[level + i]
                    work[out + i] = one if fired else zero
                    work[rest + i] = work[value + i] - (work[level + i] if fired else zero)
                    work[clock + i] = one if fired else work[clock + i] + one
            _narrowed(work[out : out + size], spikes[t, low:high])
            if bits.shape[0] > 0:
                weight = membrane.dtype.type(1 << (t & 7))
                for i in range(size):
                    work[byte + i] += weight * work[out + i]
                if t & 7 == 7 or t == steps - 1:
                    word = bits[t >> 3, low:high]
                    for i in range(size):
                        word[i] = np.uint8(np.int32(work[byte + i]))
                    work[byte : byte + size] = zero
        final_membrane[low:high] = work[rest : rest + size]
        for i in range(size):
            final_since[low + i] = np.int32(work[clock + i])


@numba.njit(cache=True, nogil=True, error_model="numpy")
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
    work = np.empty(10 * BLOCK, grad_current.dtype)
    level, keep, width, scale, slope, spike = 0, BLOCK, 2 * BLOCK, 3 * BLOCK, 4 * BLOCK, 5 * BLOCK
    decayed, carried, by_threshold, by_leak = 6 * BLOCK, 7 * BLOCK, 8 * BLOCK, 9 * BLOCK
    for low in range(begin, end, BLOCK):
        high = min(end, low + BLOCK)
        size = high - low
        spread(threshold, threshold_group, low, work[level : level + size])
        spread(leak, leak_group, low, work[keep : keep + size])
        for i in range(size):
            work[width + i] = work[level + i] if relative else one
        for i in range(size):
            work[scale + i] = height / work[width + i]
        if shape == 0:
            for i in range(size):
                work[decayed + i] = table[since[low + i]]
        # Forward in time: the gradient that enters the membrane at each step, spike gradient times slope.
        for t in range(steps):
            if shape == 0:
                # exp(-decay * steps since the last spike), a factor a step
                _spikes_of(bits[t >> 3, low:high], t, work[spike : spike + size])
                for i in range(size):
                    work[slope + i] = work[scale + i] * work[decayed + i]
                    work[decayed + i] = table[1] * (one if work[spike + i] > zero else work[decayed + i])
            else:
                potential = potentials[t, low:high]
                for i in range(size):
                    work[slope + i] = -abs(potential[i] - work[level + i]) / work[width + i]
                if shape == 1:
                    for i in range(size):
                        work[slope + i] = work[scale + i] * max(zero, one + work[slope + i])
                elif shape == 2:
                    for i in range(size):
                        work[slope + i] = work[scale + i] * exponential(work[slope + i])
                else:
                    for i in range(size):
                        work[slope + i] = work[scale + i] * sigmoid_slope(work[slope + i], one)
            entering = grad_current[t, low:high]
            if grad_spikes.size > 0:
                incoming = grad_spikes[t, low:high]
                for i in range(size):
                    entering[i] = incoming[i] * work[slope + i]
            else:  # they lie where the gradients of the currents go
                for i in range(size):
                    entering[i] *= work[slope + i]
        # Backward in time: the leak carries it to earlier steps. The reset is not differentiated.
        work[carried : carried + size] = grad_final[low:high]
        work[by_threshold : by_threshold + size] = zero
        work[by_leak : by_leak + size] = zero
        for t in range(steps - 1, -1, -1):
            entering = grad_current[t, low:high]
            if hard or grad_threshold.size > 0:
                _spikes_of(bits[t >> 3, low:high], t, work[spike : spike + size])
            if grad_threshold.size > 0:
                if hard:
                    for i in range(size):
                        work[by_threshold + i] -= entering[i]
                else:
                    for i in range(size):
                        work[by_threshold + i] -= entering[i] + work[carried + i] * work[spike + i]
            if hard:
                for i in range(size):
                    entering[i] += work[carried + i] * (one - work[spike + i])
            else:
                for i in range(size):
                    entering[i] += work[carried + i]
            for i in range(size):
                work[carried + i] = work[keep + i] * entering[i]
            if grad_leak.size > 0:
                if t == 0:
                    before = membrane[low:high]
                    for i in range(size):
                        work[by_leak + i] += entering[i] * before[i]
                else:
                    _spikes_of(bits[(t - 1) >> 3, low:high], t - 1, work[spike : spike + size])
                    before = potentials[t - 1, low:high]
                    for i in range(size):
                        lost = before[i] if hard else work[level + i]
                        work[by_leak + i] += entering[i] * (before[i] - lost * work[spike + i])
        grad_membrane[low:high] = work[carried : carried + size]
        if grad_threshold.size > 0:
            grad_threshold[low:high] = work[by_threshold : by_threshold + size]
        if grad_leak.size > 0:
            grad_leak[low:high] = work[by_leak : by_leak + size]


@numba.njit(cache=True, nogil=True)
def _spikes_of(word, t, spike):  # type: ignore[no-untyped-def]
    """The spikes at step t as floats, from the bytes that hold them."""
    mask = np.uint8(1 << (t & 7))
    zero, one = spike.dtype.type(0), spike.dtype.type(1)
    for i in range(spike.size):
        spike[i] = one if word[i] & mask != 0 else zero


@numba.njit(cache=True, nogil=True)
def _unpack(begin, end, bits, spikes):  # type: ignore[no-untyped-def]
    flags = np.empty(BLOCK, np.float32)
    for low in range(begin, end, BLOCK):
        high = min(end, low + BLOCK)
        for t in range(spikes.shape[0]):
            _spikes_of(bits[t >> 3, low:high], t, flags[: high - low])
            _narrowed(flags[: high - low], spikes[t, low:high])


@numba.njit(cache=True, nogil=True)
def _advance(begin, end, bits, steps, since):  # type: ignore[no-untyped-def]
    for low in range(begin, end, BLOCK):
        clock = since[low : min(end, low + BLOCK)]
        for t in range(steps):
            word, mask = bits[t >> 3, low : low + clock.size], np.uint8(1 << (t & 7))
            for i in range(clock.size):
                clock[i] = np.int32(1) if word[i] & mask != 0 else clock[i] + np.int32(1)


@numba.njit(cache=True, nogil=True)
def _rewind_silent(bits, steps, clock, pending):  # type: ignore[no-untyped-def]
    """Clocks before a chunk, of neurons without a spike in it; the others are put down as pending. Counts those."""
    count = 0
    for i in range(clock.size):
        fired = False
        for word in range(bits.shape[0]):
            fired |= bits[word, i] != 0
        pending[count] = i
        count += 1 if fired else 0
        clock[i] = 0 if fired else clock[i] - steps
    return count


@numba.njit(cache=True, nogil=True)
def _rewind_pending(bits, steps, clock, pending, count):  # type: ignore[no-untyped-def]
    """Look for the last spikes of pending neurons in an earlier chunk. Counts those that have none there."""
    left = 0
    for k in range(count):
        i = pending[k]
        found = False
        for word in range(bits.shape[0] - 1, -1, -1):
            byte, length = bits[word, i], min(8, steps - 8 * word)
            if byte != 0:
                last = 7
                while byte < 1 << last:
                    last -= 1
                clock[i] += length - last
                found = True
                break
            clock[i] += length
        pending[left] = i
        left += 0 if found else 1
    return left


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
    """See `hybridsnn.kernels.neuron.Kernel`."""
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
        intervals = torch.arange(max(1, int(clock.max())) + 1, dtype=torch.float64)
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
    """See `hybridsnn.kernels.neuron.Kernel`."""
    layout = Layout(bits)
    rows = layout.rows(bits)
    spikes = torch.empty(steps, rows.shape[1], dtype=torch.float32 if dtype == torch.float16 else dtype)
    over_ranges(_unpack, rows.shape[1], _worth_a_thread(steps), rows.numpy(), _array(spikes))
    return layout.restore(spikes).to(dtype)


def advance(since_spike: Tensor, bits: Tensor, steps: int) -> Tensor:
    """See `hybridsnn.kernels.neuron.Kernel`."""
    layout = Layout(bits)
    clock = layout.row(since_spike).clone()
    over_ranges(_advance, len(clock), _worth_a_thread(steps), layout.rows(bits).numpy(), steps, clock.numpy())
    return layout.restore(clock.unsqueeze(0))[0]


def rewind(
    after: Tensor, bits: Tensor, steps: int, earlier: Sequence[tuple[Tensor, int]], since_spike: Tensor
) -> Tensor:
    """See `Kernel`. A search ends where it finds a spike, so all together pass over time once."""
    layout = Layout(bits)
    clock = layout.row(after).clone()
    pending = torch.empty_like(clock)
    count = _rewind_silent(layout.rows(bits).numpy(), steps, clock.numpy(), pending.numpy())
    for words, length in reversed(earlier):
        if count == 0:
            break
        count = _rewind_pending(layout.rows(words).numpy(), length, clock.numpy(), pending.numpy(), count)
    never = pending[:count].long()
    clock[never] += layout.row(since_spike)[never]
    return layout.restore(clock.unsqueeze(0))[0]
