"""The two loops over time in Triton: a program carries one block of neurons through all of time in registers.

This file needs Triton, so `cuda.py` imports it when it first runs. Rows are `[steps, neurons]` in the order of memory,
as `Layout` gives them, and whatever comes as None is neither read nor written.
"""

import triton
import triton.language as tl


@triton.jit
def _spread(parameter, entries, group, low, place):  # type: ignore[no-untyped-def]
    """The parameter of neurons low + place: its entries lie in runs of `group`, and the runs repeat over the batch."""
    start = (low % (entries * group)).to(tl.int32)  # so that the divisions of every neuron are short ones
    return tl.load(parameter + (start + place) // group % entries)


@triton.jit
def _word(bits, word, size, neurons, neuron, real):  # type: ignore[no-untyped-def]
    """The spikes of 32 steps, step `t % 32` in bit `t % 32`; `bits` has `size` bytes, those of eight steps a row."""
    spikes = tl.full(neuron.shape, 0, tl.uint32)
    for row in tl.static_range(4):
        at = tl.cast(4 * word + row, tl.int64) * neurons + neuron
        spikes |= tl.load(bits + at, mask=real & (at < size), other=0).to(tl.uint32) << (8 * row)
    return spikes


@triton.jit
def _steps_since(history):  # type: ignore[no-untyped-def]
    """Steps since the highest bit that is set, 1 for bit 31; `history` is uint32 and not 0.

    The exponent of a float is the place of its highest bit. A bit beside a higher one goes first, else a long run of
    ones would round up to the next power of two.
    """
    thin = (history & ~(history >> 1)).to(tl.float32)
    return 32 + 127 - (thin.to(tl.int32, bitcast=True) >> 23)


@triton.jit
def _profile(distance, shape: tl.constexpr):  # type: ignore[no-untyped-def]
    """A slope of height 1 at a distance to the threshold."""
    # One way out: Triton 3.6 compiles what follows a branch that returns.
    if shape == "triangle":
        slope = tl.maximum(1 - distance, 0)
    elif shape == "exponential":
        slope = tl.exp(-distance)
    else:
        tl.static_assert(shape == "sigmoid")
        decayed = tl.exp(-4 * distance)
        slope = 4 * decayed / ((1 + decayed) * (1 + decayed))
    return slope


@triton.jit(do_not_specialize=["steps"])
def forward(  # type: ignore[no-untyped-def]
    current,
    stride,  # neurons from one step's currents to the next, 0 if all steps share a row
    threshold,
    thresholds,
    threshold_group,
    leak,
    leaks,
    leak_group,
    membrane,
    since_spike,
    spikes,
    final_membrane,
    final_since,
    bits,
    potentials,
    steps,
    neurons,
    hard: tl.constexpr,
    block: tl.constexpr,
):
    """`cuda.forward` on rows; a parameter comes with the number of its entries and how many neighbours share each."""
    wide: tl.constexpr = membrane.dtype.element_ty
    low = tl.program_id(0).to(tl.int64) * block
    place = tl.arange(0, block)
    neuron = low + place
    real = neuron < neurons
    level = _spread(threshold, thresholds, threshold_group, low, place).to(wide)
    keep = _spread(leak, leaks, leak_group, low, place).to(wide)
    rest = tl.load(membrane + neuron, mask=real)
    clock = tl.load(since_spike + neuron, mask=real)
    for first in range(0, steps, 8):
        byte = tl.full([block], 0, tl.int32)
        for t in range(first, tl.minimum(first + 8, steps)):
            step = tl.cast(t, tl.int64)
            value = keep * rest + tl.load(current + step * stride + neuron, mask=real).to(wide)
            fired = value >= level
            rest = tl.where(fired, 0, value) if hard else tl.where(fired, value - level, value)
            clock = tl.where(fired, 1, clock + 1)
            spike = tl.where(fired, 1.0, 0.0).to(spikes.dtype.element_ty)
            tl.store(spikes + step * neurons + neuron, spike, mask=real)
            if bits is not None:
                byte |= fired.to(tl.int32) << (t - first)
            if potentials is not None:
                tl.store(potentials + step * neurons + neuron, value, mask=real)
        if bits is not None:
            tl.store(bits + tl.cast(first // 8, tl.int64) * neurons + neuron, byte.to(tl.uint8), mask=real)
    tl.store(final_membrane + neuron, rest, mask=real)
    tl.store(final_since + neuron, clock, mask=real)


@triton.jit(do_not_specialize=["steps"])
def backward(  # type: ignore[no-untyped-def]
    grad_spikes,
    stride,
    grad_final,
    bits,
    potentials,
    threshold,
    thresholds,
    threshold_group,
    leak,
    leaks,
    leak_group,
    membrane,
    since_spike,
    grad_current,
    grad_membrane,
    grad_threshold,
    grad_leak,
    steps,
    neurons,
    hard: tl.constexpr,
    shape: tl.constexpr,
    height: tl.constexpr,
    decay: tl.constexpr,
    relative: tl.constexpr,
    block: tl.constexpr,
):
    """`cuda.backward` on rows, in one sweep backward in time; `grad_threshold` and `grad_leak` are per neuron."""
    wide: tl.constexpr = grad_membrane.dtype.element_ty
    low = tl.program_id(0).to(tl.int64) * block
    place = tl.arange(0, block)
    neuron = low + place
    real = neuron < neurons
    level = _spread(threshold, thresholds, threshold_group, low, place).to(wide)
    keep = _spread(leak, leaks, leak_group, low, place).to(wide)
    width = level if relative else tl.full([block], 1, wide)
    scale = height / width
    zero = tl.full([block], 0, wide)
    carried = zero  # the gradient of the membrane that a step leaves to the next
    if grad_final is not None:
        carried = tl.load(grad_final + neuron, mask=real).to(wide)
    total = zero  # the gradient of the membrane before the reset, of the step after
    by_threshold = zero
    by_leak = zero
    size = tl.cast((steps + 7) // 8, tl.int64) * neurons
    for word in range((steps - 1) // 32, -1, -1):
        first = word * 32
        count = tl.minimum(steps - first, 32)
        # The spike of the step at hand is in the highest bit, those of the steps before it follow.
        history = _word(bits, word, size, neurons, neuron, real) << (32 - count).to(tl.uint32)
        if shape == "spike-time":
            # The clock at the first step of this word. Earlier words are read again: less traffic than to keep clocks,
            # up to some thousand steps.
            clock = tl.load(since_spike + neuron, mask=real)
            for earlier in range(0, word):
                before = _word(bits, earlier, size, neurons, neuron, real)
                clock = tl.where(before == 0, clock + 32, _steps_since(before))
        for t in range(first + count - 1, first - 1, -1):
            step = tl.cast(t, tl.int64)
            fired = (history >> 31) != 0
            history = history << 1
            if potentials is not None:
                potential = tl.load(potentials + step * neurons + neuron, mask=real)
                if grad_leak is not None:
                    by_leak += total * tl.where(fired, 0 if hard else potential - level, potential)
            if shape == "spike-time":
                since = tl.where(history == 0, clock + (t - first), _steps_since(history))
                slope = tl.exp(-decay * since.to(wide))
            else:
                slope = _profile(tl.abs(potential - level) / width, shape)
            entering = tl.load(grad_spikes + step * stride + neuron, mask=real).to(wide) * (scale * slope)
            if grad_threshold is not None:
                by_threshold -= entering if hard else entering + tl.where(fired, carried, 0)
            total = entering + (tl.where(fired, 0, carried) if hard else carried)
            tl.store(grad_current + step * neurons + neuron, total.to(grad_current.dtype.element_ty), mask=real)
            carried = keep * total
    tl.store(grad_membrane + neuron, carried, mask=real)
    if grad_threshold is not None:
        tl.store(grad_threshold + neuron, by_threshold, mask=real)
    if grad_leak is not None:
        by_leak += total * tl.load(membrane + neuron, mask=real)
        tl.store(grad_leak + neuron, by_leak, mask=real)
