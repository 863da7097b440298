"""Spikes as bits on a CPU, and the clocks that can be had from them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hybridsnn.kernels.compilation import compiled
from hybridsnn.kernels.neuron.halves import array, one_of
from hybridsnn.kernels.neuron.layout import Layout
from hybridsnn.kernels.threads import over_ranges

BLOCK = 1024  # neurons per block: what loops know of one block stays in the first-level cache
THREAD = 128 * BLOCK  # neurons, times steps, that are worth waking a thread for: it takes a tenth of a millisecond
LATEST = np.array([byte.bit_length() - 1 for byte in range(256)], np.float32)  # step of a byte that fired last, or -1


def worth_a_thread(steps: int) -> int:
    """How many neurons, in whole blocks, are worth waking a thread for."""
    return BLOCK * max(1, THREAD // (BLOCK * steps))


def unpack(bits: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """See `hybridsnn.kernels.neuron.Kernel`."""
    layout = Layout(bits)
    rows = layout.rows(bits)
    spikes = torch.empty(steps, rows.shape[1], dtype=torch.float32 if dtype == torch.float16 else dtype)
    over_ranges(_unpack, rows.shape[1], worth_a_thread(steps), rows.numpy(), array(spikes))
    return layout.restore(spikes).to(dtype)


def advance(since_spike: Tensor, bits: Tensor, steps: int) -> Tensor:
    """See `hybridsnn.kernels.neuron.Kernel`."""
    layout = Layout(bits)
    clock = layout.row(since_spike).clone()
    over_ranges(_advance, len(clock), worth_a_thread(steps), layout.rows(bits).numpy(), steps, clock.numpy())
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


@compiled(nogil=True)
def spikes_of(word, t, spike):  # type: ignore[no-untyped-def]
    """The spikes at step t as zeros and ones, from the bytes that hold them."""
    mask = np.uint8(1 << (t & 7))
    zero, one = spike.dtype.type(0), one_of(spike)
    for i in range(spike.size):
        spike[i] = one if word[i] & mask != 0 else zero


@compiled(nogil=True)
def _unpack(begin, end, bits, spikes):  # type: ignore[no-untyped-def]
    for low in range(begin, end, BLOCK):
        high = min(end, low + BLOCK)
        for t in range(spikes.shape[0]):
            spikes_of(bits[t >> 3, low:high], t, spikes[t, low:high])


@compiled(nogil=True)
def _advance(begin, end, bits, steps, since):  # type: ignore[no-untyped-def]
    for low in range(begin, end, BLOCK):
        clock = since[low : min(end, low + BLOCK)]
        for t in range(steps):
            word, mask = bits[t >> 3, low : low + clock.size], np.uint8(1 << (t & 7))
            for i in range(clock.size):
                clock[i] = np.int32(1) if word[i] & mask != 0 else clock[i] + np.int32(1)


@compiled(nogil=True)
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


@compiled(nogil=True)
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
