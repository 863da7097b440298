"""The two loops over time, compiled for the CPU: a block of neurons runs through all of it while it is in cache.

Rows are `[steps, neurons]` in the order of memory, as `Layout` gives them; bfloat16 comes as words (`halves.py`). What
is not asked for comes as an empty array. What a block works with lies in one array, line after line of `BLOCK` values:
lines are then known to be apart, so that the compiler makes vectors of the loops; of as many separate arrays it would
have to ask each time.
"""

import numba
import numpy as np

from hybridsnn.kernels.neuron.bits import BLOCK, spikes_of
from hybridsnn.kernels.neuron.halves import narrowed, one_of, widened
from hybridsnn.kernels.neuron.slopes import SPIKE_TIME, heights, slopes


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
def forward(  # type: ignore[no-untyped-def]
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
            row = widened(current[t if current.shape[0] > 1 else 0, low:high], wide)
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
            spike = spikes[t, low:high]
            none, single = spike.dtype.type(0), one_of(spike)
            for i in range(size):
                spike[i] = single if work[out + i] > zero else none
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
def backward(  # type: ignore[no-untyped-def]
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
    """Gradients of currents may be the memory of those of spikes: a block's rows are all read before one is written."""
    steps = grad_current.shape[0]
    zero, one = grad_membrane.dtype.type(0), grad_membrane.dtype.type(1)
    work = np.empty((11 + steps) * BLOCK, grad_membrane.dtype)
    level, keep, width, scale, slope, spike = 0, BLOCK, 2 * BLOCK, 3 * BLOCK, 4 * BLOCK, 5 * BLOCK
    decayed, carried, by_threshold, by_leak, first = 6 * BLOCK, 7 * BLOCK, 8 * BLOCK, 9 * BLOCK, 11 * BLOCK
    wide = work[10 * BLOCK : 11 * BLOCK]
    for low in range(begin, end, BLOCK):
        high = min(end, low + BLOCK)
        size = high - low
        spread(threshold, threshold_group, low, work[level : level + size])
        spread(leak, leak_group, low, work[keep : keep + size])
        heights(work[level : level + size], height, relative, work[width : width + size], work[scale : scale + size])
        if shape == SPIKE_TIME:
            for i in range(size):
                work[decayed + i] = table[since[low + i]]
        # Forward in time: the gradient that enters the membrane at each step, spike gradient times slope.
        for t in range(steps):
            if shape == SPIKE_TIME:
                # exp(-decay * steps since the last spike), a factor a step
                spikes_of(bits[t >> 3, low:high], t, work[spike : spike + size])
                for i in range(size):
                    work[slope + i] = work[scale + i] * work[decayed + i]
                    work[decayed + i] = table[1] * (one if work[spike + i] > zero else work[decayed + i])
            else:
                slopes(
                    shape,
                    potentials[t, low:high],
                    work[level : level + size],
                    work[width : width + size],
                    work[scale : scale + size],
                    work[slope : slope + size],
                )
            incoming = widened(grad_spikes[t, low:high], wide)
            entering = first + t * BLOCK
            for i in range(size):
                work[entering + i] = incoming[i] * work[slope + i]
        # Backward in time: the leak carries it to earlier steps. The reset is not differentiated.
        work[carried : carried + size] = grad_final[low:high]
        work[by_threshold : by_threshold + size] = zero
        work[by_leak : by_leak + size] = zero
        for t in range(steps - 1, -1, -1):
            entering = first + t * BLOCK
            if hard or grad_threshold.size > 0:
                spikes_of(bits[t >> 3, low:high], t, work[spike : spike + size])
            if grad_threshold.size > 0:
                if hard:
                    for i in range(size):
                        work[by_threshold + i] -= work[entering + i]
                else:
                    for i in range(size):
                        work[by_threshold + i] -= work[entering + i] + work[carried + i] * work[spike + i]
            if hard:
                for i in range(size):
                    work[entering + i] += work[carried + i] * (one - work[spike + i])
            else:
                for i in range(size):
                    work[entering + i] += work[carried + i]
            for i in range(size):
                work[carried + i] = work[keep + i] * work[entering + i]
            narrowed(work[entering : entering + size], grad_current[t, low:high])
            if grad_leak.size > 0:
                if t == 0:
                    before = membrane[low:high]
                    for i in range(size):
                        work[by_leak + i] += work[entering + i] * before[i]
                else:
                    spikes_of(bits[(t - 1) >> 3, low:high], t - 1, work[spike : spike + size])
                    before = potentials[t - 1, low:high]
                    for i in range(size):
                        lost = before[i] if hard else work[level + i]
                        work[by_leak + i] += work[entering + i] * (before[i] - lost * work[spike + i])
        grad_membrane[low:high] = work[carried : carried + size]
        if grad_threshold.size > 0:
            grad_threshold[low:high] = work[by_threshold : by_threshold + size]
        if grad_leak.size > 0:
            grad_leak[low:high] = work[by_leak : by_leak + size]
