"""Gradients of weights on a CPU that cost as much as there are spikes.

    gradient[tap, channel] = sum of value * errors[pixel - tap] over the pixels where the channel is active

The errors around some pixels are copied together to where they fit the second-level cache, in rows of a block of output
channels, and all channels run through them before the next ones follow. The order of each sum is fixed, as in
`event_driven`.
"""

import math
from typing import NamedTuple

from torch import Tensor

from hybridsnn.kernels.compilation import compiled
from hybridsnn.kernels.synapse import lists
from hybridsnn.kernels.synapse.geometry import Geometry, Pair, channels_last, flat
from hybridsnn.kernels.synapse.lists import ZERO, Lists, list_pixels
from hybridsnn.kernels.synapse.matrices import room
from hybridsnn.kernels.synapse.vectors import add_rows, transpose
from hybridsnn.kernels.threads import over_ranges

ROWS = 576  # of errors that are copied together: 144 KiB, a third of a small second-level cache
SUMS = 2048  # rows of a gradient that are summed together: they are read and written once for `ROWS` of the errors


class Bands(NamedTuple):
    """How images are cut so that their padded errors fit the cache: bands of lines, a few of which make a chunk."""

    lines: int  # of all bands of an image but perhaps the last
    in_image: int
    number: int  # in all images
    in_chunk: int
    line: int  # places from a line of a padded band to the next
    band: int  # places from a padded band to the next

    @classmethod
    def of(cls, geometry: Geometry) -> "Bands":
        halo = geometry.kernel_height - 1
        line = geometry.width + geometry.kernel_width - 1
        lines = math.ceil(geometry.height / math.ceil(geometry.height / max(1, ROWS // line - halo)))
        in_image = math.ceil(geometry.height / lines)
        band = (lines + halo) * line
        return cls(lines, in_image, geometry.batch * in_image, max(1, ROWS // band), line, band)

    @property
    def chunks(self) -> int:
        return math.ceil(self.number / self.in_chunk)


@compiled(nogil=True, error_model="numpy")
def _copy_errors(chunk, block, errors, geometry, bands, rows):  # type: ignore[no-untyped-def]
    """The errors of a block of outputs that a chunk's inputs take part in, with zeros where there is no output."""
    first, last = chunk * bands.in_chunk, min((chunk + 1) * bands.in_chunk, bands.number)
    width = geometry.width_of_block
    size = min(width, geometry.out_channels - block * width)
    above = geometry.kernel_height - 1 - geometry.above
    before = geometry.kernel_width - 1 - geometry.before
    for band in range(first, last):
        top = band % bands.in_image * bands.lines - above
        for line in range(bands.band // bands.line):
            y = top + line
            for column in range(bands.line):
                x = column - before
                to = ((band - first) * bands.band + line * bands.line + column) * width
                if 0 <= y < geometry.out_height and 0 <= x < geometry.out_width:
                    pixel = (band // bands.in_image * geometry.out_height + y) * geometry.out_width + x
                    at = pixel * geometry.out_channels + block * width
                    rows[to : to + size] = errors[at : at + size]
                else:
                    rows[to : to + width] = ZERO


@compiled(nogil=True, error_model="numpy")
def _correlate(begin, end, lists, errors, gradient, geometry, bands, tile):  # type: ignore[no-untyped-def]
    """Blocks of outputs, for each block all channels: the items begin <= i < end of blocks times channels.

    `tile` channels are summed at a time, on top of what the gradient is.
    """
    bounds, places, values = lists
    channels, columns, width = geometry.channels, geometry.kernel_width, geometry.width_of_block
    taps = geometry.kernel_height * columns
    chunks = math.ceil(bands.number / bands.in_chunk)
    rows, sums = room(bands.in_chunk * bands.band * width), room(taps * tile * width)
    rows[:], sums[:] = 0, 0
    for block in range(begin // channels, math.ceil(end / channels)):
        size = min(width, geometry.out_channels - block * width)
        start, stop = max(begin - block * channels, 0), min(end - block * channels, channels)
        copied = -1
        for low in range(start, stop, tile):
            high = min(low + tile, stop)
            at = block * width * taps * channels + low
            for tap in range(taps):
                transpose(
                    gradient, at + tap * channels, taps * channels,
                    sums, tap * tile * width, width, high - low, size,
                )  # fmt: skip
            for chunk in range(chunks):
                if copied != chunk:
                    _copy_errors(chunk, block, errors, geometry, bands, rows)
                    copied = chunk
                for channel in range(low, high):
                    bound = chunk * (channels + 1) + channel
                    for tap in range(taps):
                        sum_at = (tap * tile + channel - low) * width
                        y, x = geometry.kernel_height - 1 - tap // columns, columns - 1 - tap % columns
                        add_rows(
                            width, sums, sum_at, sums, sum_at, rows, y * bands.line + x, 0,
                            places, values, bounds, bound, bound + 1, 0, 1,
                        )  # fmt: skip
            for tap in range(taps):
                transpose(
                    sums, tap * tile * width, width,
                    gradient, at + tap * channels, taps * channels, size, high - low,
                )  # fmt: skip


def convolution_weight_gradient(inputs: Tensor, errors: Tensor, padding: Pair = (1, 1)) -> Tensor:
    """The gradient `[out, in, *, *]` (channels-last) of the weight of a convolution of stride 1.

    Args:
        inputs: `[N, in, H, W]`.
        errors: the gradient of the outputs `[N, out, *, *]`; how large these are says how large the kernel is.
        padding: of height and width.
    """
    sizes = zip(inputs.shape[2:], errors.shape[2:], padding, strict=True)
    kernel = [length + 2 * pad - out_length + 1 for length, out_length, pad in sizes]
    gradient = inputs.new_zeros(errors.shape[1], *kernel, inputs.shape[1])
    _add_weight_gradient(inputs, errors, padding, gradient)
    return gradient.permute(0, 3, 1, 2)


def linear_weight_gradient(inputs: Tensor, errors: Tensor, into: Tensor | None = None) -> Tensor:
    """The gradient `[out, in]` of the weight of a linear layer.

    Args:
        inputs: `[N, in]`.
        errors: the gradient of the outputs, `[N, out]`.
        into: a contiguous tensor `[out, in]` to which the gradient is added, and which is then returned.
    """
    gradient = inputs.new_zeros(errors.shape[1], inputs.shape[1]) if into is None else into
    _add_weight_gradient(inputs[:, :, None, None], errors[:, :, None, None], (0, 0), gradient[:, None, None])
    return gradient


def _add_weight_gradient(inputs: Tensor, errors: Tensor, padding: Pair, gradient: Tensor) -> None:
    """Add to the gradient `[out, *, *, in]`."""
    geometry = Geometry.of(inputs, gradient.permute(0, 3, 1, 2), (1, 1), padding)
    bands = Bands.of(geometry)
    channels, blocks = geometry.channels, geometry.blocks
    found = Lists.empty(bands.chunks * (channels + 1), inputs.numel())
    worth = math.ceil(lists.VALUES / (bands.in_chunk * bands.lines * geometry.width * channels))
    spikes = sum(over_ranges(list_pixels, bands.chunks, worth, flat(channels_last(inputs)), geometry, bands, found))
    tile = math.ceil(channels / math.ceil(channels * geometry.taps / SUMS))
    over_ranges(
        _correlate, blocks * channels, geometry.worth_a_thread(blocks * channels, spikes),
        found, flat(channels_last(errors)), flat(gradient), geometry, bands, tile,
    )  # fmt: skip
