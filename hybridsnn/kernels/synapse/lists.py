"""Lists of what is not 0 among inputs, which most of spikes are."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hybridsnn.kernels.compilation import compiled
from hybridsnn.kernels.synapse.geometry import channels_last, flat
from hybridsnn.kernels.synapse.vectors import MASK, active, bits, lowest
from hybridsnn.kernels.threads import over_ranges

VALUES = 2**18  # inputs to look at that are worth waking a thread for: it takes a tenth of a millisecond

ZERO, ONE = np.float32(0), np.uint64(1)


class Lists(NamedTuple):
    """What is not 0: entry k says which row to add, and how many times. See `vectors.add_rows`."""

    bounds: Any  # int64: where lists begin and end
    places: Any  # int32
    values: Any  # float32

    @classmethod
    def empty(cls, bounds: int, inputs: int) -> "Lists":
        """Room for lists of so many inputs, of which memory is used only as far as it is written to."""
        places = torch.empty(inputs, dtype=torch.int32)
        return cls(torch.empty(bounds, dtype=torch.int64).numpy(), places.numpy(), torch.empty(inputs).numpy())


@compiled(nogil=True, error_model="numpy")
def _count(begin, end, inputs):  # type: ignore[no-untyped-def]
    """How many of the inputs begin <= i < end are not 0."""
    count, whole = 0, begin + (end - begin) // MASK * MASK
    for i in range(begin, whole, MASK):
        count += bits(active(inputs, i))
    for i in range(whole, end):
        count += inputs[i] != ZERO
    return count


@compiled(nogil=True, error_model="numpy")
def list_channels(begin, end, inputs, frames, geometry, parts, lists):  # type: ignore[no-untyped-def]
    """List the active channels of the lines begin <= line < end of the images named by `frames`, pixel after pixel.

    The lists of a line and part lie together, so that those of neighbouring pixels are one list; a place counts pixels
    and channels. Returns how many entries there are.
    """
    bounds, places, values = lists
    first = k = begin * geometry.width * geometry.channels
    for line in range(begin, end):
        in_line = frames[line // geometry.height] * geometry.height + line % geometry.height
        for part in range(parts.number):
            start = part * parts.channels
            size = min(parts.channels, geometry.channels - start)
            whole = size // MASK * MASK
            bound = (line * parts.number + part) * (geometry.width + 1)
            for x in range(geometry.width):
                bounds[bound + x] = k
                at = (in_line * geometry.width + x) * geometry.channels + start
                for low in range(0, whole, MASK):
                    mask = active(inputs, at + low)
                    while mask:
                        channel = low + lowest(mask)
                        mask &= mask - ONE
                        places[k], values[k] = x * size + channel, inputs[at + channel]
                        k += 1
                for channel in range(whole, size):
                    if inputs[at + channel] != ZERO:
                        places[k], values[k] = x * size + channel, inputs[at + channel]
                        k += 1
            bounds[bound + geometry.width] = k
    return k - first


@compiled(nogil=True, error_model="numpy")
def list_pixels(begin, end, inputs, geometry, bands, lists):  # type: ignore[no-untyped-def]
    """List the active pixels of the chunks begin <= chunk < end, channel after channel; a place is one in the chunk.

    Returns how many entries there are.
    """
    bounds, places, values = lists
    channels, entries = geometry.channels, 0
    whole = channels // MASK * MASK
    counts, nexts = np.empty(channels, np.int32), np.empty(channels, np.int64)
    for chunk in range(begin, end):
        first, last = chunk * bands.in_chunk, min((chunk + 1) * bands.in_chunk, bands.number)
        low = first // bands.in_image * geometry.height + first % bands.in_image * bands.lines
        high = last // bands.in_image * geometry.height + last % bands.in_image * bands.lines
        counts[:] = 0
        for pixel in range(low * geometry.width, high * geometry.width):
            pixel_inputs = inputs[pixel * channels : (pixel + 1) * channels]
            for channel in range(pixel_inputs.size):
                counts[channel] += np.int32(pixel_inputs[channel] != ZERO)
        k, bound = low * geometry.width * channels, chunk * (channels + 1)
        for channel in range(channels):
            bounds[bound + channel] = k
            nexts[channel] = k
            k += counts[channel]
        bounds[bound + channels] = k
        entries += k - bounds[bound]
        for line in range(low, high):
            y = line % geometry.height
            band = line // geometry.height * bands.in_image + y // bands.lines - first
            for x in range(geometry.width):
                place = band * bands.band + y % bands.lines * bands.line + x
                at = (line * geometry.width + x) * channels
                for start in range(0, whole, MASK):
                    mask = active(inputs, at + start)
                    while mask:
                        channel = start + lowest(mask)
                        mask &= mask - ONE
                        k = nexts[channel]
                        places[k], values[k], nexts[channel] = place, inputs[at + channel], k + 1
                for channel in range(whole, channels):
                    if inputs[at + channel] != ZERO:
                        k = nexts[channel]
                        places[k], values[k], nexts[channel] = place, inputs[at + channel], k + 1
    return entries


@compiled(nogil=True, error_model="numpy")
def _count_each(begin, end, inputs, size, counts):  # type: ignore[no-untyped-def]
    """How many of the inputs of each frame begin <= frame < end are not 0."""
    for frame in range(begin, end):
        counts[frame] = _count(frame * size, (frame + 1) * size, inputs)


def densities(inputs: Tensor) -> Tensor:
    """The share of the inputs of each of the frames `[N, C, H, W]`, float32 on the CPU, that is not 0, `[N]`."""
    size = inputs[0].numel()
    counts = torch.empty(len(inputs), dtype=torch.int64)
    over_ranges(
        _count_each, len(inputs), max(1, VALUES // size), flat(channels_last(inputs)), size, counts.numpy()
    )  # fmt: skip
    return counts / size


def density(inputs: Tensor) -> float:
    """The share of the inputs, float32 on the CPU, that is not 0."""
    if inputs.dim() == 4:
        inputs = inputs.permute(0, 2, 3, 1)  # so that channels-last images are counted as they lie in memory
    values = flat(inputs.contiguous())
    return sum(over_ranges(_count, values.size, VALUES, values)) / max(1, values.size)
