"""The two loops over time, compiled for the CPU: a block of neurons runs through all of it while it is in cache.

Rows are `[steps, neurons]` in the order of memory, as `Layout` gives them; bfloat16 comes as words (`halves.py`). What
is not asked for comes as an empty array. What a block works with lies in one array, line after line of `BLOCK` values:
lines are then known to be apart, so that the compiler makes vectors of the loops; of as many separate arrays it would
have to ask each time. The row of the next step is called for early: rows lie so far apart that the processor does not
foresee it.
"""

import numpy as np

from hybridsnn.kernels.compilation import compiled
from hybridsnn.kernels.neuron.bits import BLOCK, LATEST, spikes_of
from hybridsnn.kernels.neuron.halves import one_of, stored, widen
from hybridsnn.kernels.neuron.prefetch import prefetch
from hybridsnn.kernels.neuron.slopes import SPIKE_TIME, heights, slopes

LINE = BLOCK + 80  # from one line to the next: not a multiple of 4096 bytes, at which a load waits for a store


@compiled
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


@compiled(nogil=True)
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
    """Spikes may be the memory of the currents: each row is read before it is written.

    States that are the same for all neurons come as arrays of one.
    """
    steps = spikes.shape[0]
    zero = membrane.dtype.type(0)
    work = np.empty(6 * LINE, membrane.dtype)
    level, keep, rest, clock, byte, entering = 0, LINE, 2 * LINE, 3 * LINE, 4 * LINE, 5 * LINE
    for low in range(begin, end, BLOCK):
        high = min(end, low + BLOCK)
        size = high - low
        spread(threshold, threshold_group, low, work[level : level + size])
        spread(leak, leak_group, low, work[keep : keep + size])
        if membrane.size == 1:
            work[rest : rest + size] = membrane[0]
        else:
            work[rest : rest + size] = membrane[low:high]
        if since.size == 1:
            work[clock : clock + size] = since[0]
        else:
            work[clock : clock + size] = since[low:high]
        work[byte : byte + size] = zero
        for t in range(steps):
            if t + 1 < steps and current.shape[0] > 1:
                prefetch(current[t + 1, low:high])
            # A current that is the same at every step comes as a single row.
            widen(current[t if current.shape[0] > 1 else 0, low:high], work[entering : entering + size])
            if potentials.shape[0] > 0:
                potential = potentials[t, low:high]
                for i in range(size):
                    potential[i] = work[keep + i] * work[rest + i] + work[entering + i]
            spike, weight = spikes[t, low:high], membrane.dtype.type(1 << (t & 7))
            none, single = spike.dtype.type(0), one_of(spike)
            # One loop for each reset, without branches inside.
            if hard:
                for i in range(size):
                    value = work[keep + i] * work[rest + i] + work[entering + i]
                    fired = value >= work[level + i]
                    work[rest + i] = zero if fired else value
                    work[byte + i] += weight if fired else zero
                    spike[i] = single if fired else none
            else:
                for i in range(size):
                    value = work[keep + i] * work[rest + i] + work[entering + i]
                    fired = value >= work[level + i]
                    work[rest + i] = value - (work[level + i] if fired else zero)
                    work[byte + i] += weight if fired else zero
                    spike[i] = single if fired else none
            if t & 7 == 7 or t == steps - 1:
                # Clocks go on by what the byte says: less to do than at every step.
                count = membrane.dtype.type((t & 7) + 1)
                for i in range(size):
                    latest = LATEST[np.int32(work[byte + i])]
                    work[clock + i] = count - latest if latest >= zero else work[clock + i] + count
                if bits.shape[0] > 0:
                    word = bits[t >> 3, low:high]
                    for i in range(size):
                        word[i] = np.uint8(np.int32(work[byte + i]))
                work[byte : byte + size] = zero
        final_membrane[low:high] = work[rest : rest + size]
        for i in range(size):
            final_since[low + i] = np.int32(work[clock + i])


@compiled(nogil=True)
def _add(one, other, total):  # type: ignore[no-untyped-def]
    for i in range(total.size):
        total[i] = one[i] + other[i]


@compiled(nogil=True, error_model="numpy")
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
    """Gradients of currents may be the memory of those of spikes: a block's rows are all read before one is written.

    States that are the same for all neurons come as arrays of one.
    """
    steps = grad_current.shape[0]
    zero, one = grad_membrane.dtype.type(0), grad_membrane.dtype.type(1)
    work = np.empty(11 * LINE, grad_membrane.dtype)
    lines = np.empty((steps, LINE), grad_membrane.dtype)
    level, keep, width, scale, slope, spike = 0, LINE, 2 * LINE, 3 * LINE, 4 * LINE, 5 * LINE
    decayed, carried, by_threshold, by_leak, total = 6 * LINE, 7 * LINE, 8 * LINE, 9 * LINE, 10 * LINE
    for low in range(begin, end, BLOCK):
        high = min(end, low + BLOCK)
        size = high - low
        spread(threshold, threshold_group, low, work[level : level + size])
        spread(leak, leak_group, low, work[keep : keep + size])
        heights(work[level : level + size], height, relative, work[width : width + size], work[scale : scale + size])
        if shape == SPIKE_TIME:
            for i in range(size):
                work[decayed + i] = table[since[0 if since.size == 1 else low + i]]
        # Forward in time: the gradient that enters the membrane at each step, spike gradient times slope.
        for t in range(steps):
            entering = lines[t, :size]
            if t + 1 < steps:
                prefetch(grad_spikes[t + 1, low:high])
            widen(grad_spikes[t, low:high], entering)
            if shape == SPIKE_TIME:
                # exp(-decay * steps since the last spike), a factor a step
                word, mask = bits[t >> 3, low:high], np.uint8(1 << (t & 7))
                for i in range(size):
                    entering[i] *= work[scale + i] * work[decayed + i]
                    work[decayed + i] = table[1] * (one if word[i] & mask != 0 else work[decayed + i])
            else:
                slopes(
                    shape,
                    potentials[t, low:high],
                    work[level : level + size],
                    work[width : width + size],
                    work[scale : scale + size],
                    work[slope : slope + size],
                )
                for i in range(size):
                    entering[i] *= work[slope + i]
        # Backward in time: the leak carries it to earlier steps. The reset is not differentiated.
        if grad_final.size == 1:
            work[carried : carried + size] = grad_final[0]
        else:
            work[carried : carried + size] = grad_final[low:high]
        work[by_threshold : by_threshold + size] = zero
        work[by_leak : by_leak + size] = zero
        for t in range(steps - 1, -1, -1):
            entering = lines[t, :size]
            if hard or grad_threshold.size > 0:
                spikes_of(bits[t >> 3, low:high], t, work[spike : spike + size])
            if grad_threshold.size > 0:
                if hard:
                    for i in range(size):
                        work[by_threshold + i] -= entering[i]
                else:
                    for i in range(size):
                        work[by_threshold + i] -= entering[i] + work[carried + i] * work[spike + i]
            if hard:
                for i in range(size):
                    work[carried + i] *= one - work[spike + i]
            _add(entering, work[carried : carried + size], work[total : total + size])
            for i in range(size):
                work[carried + i] = work[keep + i] * work[total + i]
            passed = grad_current[t, low:high]
            for i in range(size):
                passed[i] = stored(work[total + i], passed)
            if grad_leak.size > 0:
                if t == 0:
                    before = membrane[low:high]
                    for i in range(size):
                        work[by_leak + i] += work[total + i] * before[i]
                else:
                    spikes_of(bits[(t - 1) >> 3, low:high], t - 1, work[spike : spike + size])
                    before = potentials[t - 1, low:high]
                    for i in range(size):
                        lost = before[i] if hard else work[level + i]
                        work[by_leak + i] += work[total + i] * (before[i] - lost * work[spike + i])
        grad_membrane[low:high] = work[carried : carried + size]
        if grad_threshold.size > 0:
            grad_threshold[low:high] = work[by_threshold : by_threshold + size]
        if grad_leak.size > 0:
            grad_leak[low:high] = work[by_leak : by_leak + size]
