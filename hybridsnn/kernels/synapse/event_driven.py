"""Synapses on a CPU that cost as much as there are spikes: convolutions, linear layers, the gradients of their weights.

Where a share r of the inputs is not 0, only r of the multiplications and additions are needed. The inputs become lists
of what is not 0, and what remains is to add rows of the weight, or of the errors:

    outputs[pixel] = bias + sum of value * weight[tap, channel] over what is active among the taps of the pixel
    gradient[tap, channel] = sum of value * errors[pixel - tap] over the pixels where the channel is active

Each row has `WIDTH` outputs, whose sums stay in registers (`vectors.add_rows`). The rows that may be needed are copied
together to where they fit the second-level cache, and all pictures run through them before the next ones follow.

Every sum has an order of its own, which depends on no other picture and no other thread: cutting a batch, or sharing it
among threads, changes no bit. It is exact where float32 is. Inputs may be any numbers; most should be 0.

Pictures are `[N, channels, height, width]`, best channels-last; a linear layer sees pictures of one pixel. Everything
is float32 and records no gradients. `supports` says what can be run, `sparse_costs` what is worth it.
"""

import math
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from hybridsnn.kernels.synapse.vectors import MASK, WIDTH, active, add_rows, bits, lowest, transpose
from hybridsnn.kernels.threads import over_ranges

ROWS = 576  # that are copied together: 144 KiB, a third of a small second-level cache
SUMS = 2048  # rows of a gradient that are summed together: they are read and written once for `ROWS` of the errors
VALUES = 2**18  # inputs to list that are worth waking a thread for: it takes a tenth of a millisecond
ADDITIONS = 2**21  # the same, of outputs

ZERO, ONE = np.float32(0), np.uint64(1)
Pair = tuple[int, int]
compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


class Geometry(NamedTuple):
    """The sizes of a convolution."""

    batch: int
    channels: int
    height: int
    width: int
    out_channels: int
    out_height: int
    out_width: int
    kernel_height: int
    kernel_width: int
    stride_y: int
    stride_x: int
    above: int  # lines of zeros
    before: int  # columns of zeros

    @classmethod
    def of(cls, inputs: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> "Geometry":
        """Of a convolution, or of a linear layer as the convolution of pictures of one pixel."""
        if weight.dim() == 2:
            return cls.of(inputs[:, :, None, None], weight[:, :, None, None], (1, 1), (0, 0))
        batch, channels, height, width = inputs.shape
        out_channels, _, kernel_height, kernel_width = weight.shape
        out_height = (height + 2 * padding[0] - kernel_height) // stride[0] + 1
        out_width = (width + 2 * padding[1] - kernel_width) // stride[1] + 1
        return cls(
            batch, channels, height, width, out_channels, out_height, out_width, kernel_height, kernel_width,
            *stride, *padding,
        )  # fmt: skip

    @property
    def taps(self) -> int:
        return self.kernel_height * self.kernel_width

    @property
    def blocks(self) -> int:
        """How many times `WIDTH` outputs there are."""
        return math.ceil(self.out_channels / WIDTH)

    @property
    def outputs(self) -> int:
        """How many outputs a channel has."""
        return self.batch * self.out_height * self.out_width

    @property
    def taps_inside(self) -> int:
        """How many taps, of all outputs of a picture, lie in the picture."""
        inside = [
            sum(
                max(0, min(place * stride - before + taps, length) - max(place * stride - before, 0))
                for place in range(out_length)
            )
            for length, out_length, taps, stride, before in (
                (self.height, self.out_height, self.kernel_height, self.stride_y, self.above),
                (self.width, self.out_width, self.kernel_width, self.stride_x, self.before),
            )
        ]
        return inside[0] * inside[1]

    def worth_a_thread(self, items: int, spikes: int) -> int:
        """How many items of work one thread should have; all of them together add a row for each tap and spike."""
        additions = spikes * self.taps * self.blocks * WIDTH / (self.stride_y * self.stride_x)
        return max(1, math.ceil(items * min(1, ADDITIONS / max(1, additions))))


class Lists(NamedTuple):
    """What is not 0: entry k says which row to add, and how many times. See `vectors.add_rows`."""

    bounds: Any  # int64: where lists begin and end
    places: Any  # int32
    values: Any  # float32

    @classmethod
    def empty(cls, bounds: int, inputs: Tensor) -> "Lists":
        """Room for lists of all the inputs, of which memory is used only as far as it is written to."""
        places = torch.empty(inputs.numel(), dtype=torch.int32)
        return cls(torch.empty(bounds, dtype=torch.int64).numpy(), places.numpy(), _flat(torch.empty(inputs.numel())))


class Parts(NamedTuple):
    """How a weight is cut so that each piece fits the cache: some of its channels, and some lines of its kernel."""

    number: int
    channels: int  # of all parts but perhaps the last
    lines: int

    @classmethod
    def of(cls, geometry: Geometry) -> "Parts":
        row = geometry.kernel_width * geometry.channels
        channels = math.ceil(geometry.channels / math.ceil(row / ROWS))
        number = math.ceil(geometry.channels / channels)
        return cls(number, channels, min(geometry.kernel_height, ROWS // row) if row <= ROWS else 1)


class Bands(NamedTuple):
    """How pictures are cut so that their padded errors fit the cache: bands of lines, a few of which make a chunk."""

    lines: int  # of all bands of a picture but perhaps the last
    in_picture: int
    number: int  # in all pictures
    in_chunk: int
    line: int  # places from a line of a padded band to the next
    band: int  # places from a padded band to the next

    @classmethod
    def of(cls, geometry: Geometry) -> "Bands":
        halo = geometry.kernel_height - 1
        line = geometry.width + geometry.kernel_width - 1
        lines = math.ceil(geometry.height / math.ceil(geometry.height / max(1, ROWS // line - halo)))
        in_picture = math.ceil(geometry.height / lines)
        band = (lines + halo) * line
        return cls(lines, in_picture, geometry.batch * in_picture, max(1, ROWS // band), line, band)

    @property
    def chunks(self) -> int:
        return math.ceil(self.number / self.in_chunk)


@compiled
def _count(begin, end, inputs):  # type: ignore[no-untyped-def]
    """How many of the inputs begin <= i < end are not 0."""
    count, whole = 0, begin + (end - begin) // MASK * MASK
    for i in range(begin, whole, MASK):
        count += bits(active(inputs, i))
    for i in range(whole, end):
        count += inputs[i] != ZERO
    return count


@compiled
def _list_channels(begin, end, inputs, geometry, parts, lists):  # type: ignore[no-untyped-def]
    """List the active channels of the lines begin <= line < end of all pictures, pixel after pixel.

    The lists of a line and part lie together, so that those of neighbouring pixels are one list; a place counts pixels
    and channels. Returns how many entries there are.
    """
    bounds, places, values = lists
    first = k = begin * geometry.width * geometry.channels
    for line in range(begin, end):
        for part in range(parts.number):
            start = part * parts.channels
            size = min(parts.channels, geometry.channels - start)
            whole = size // MASK * MASK
            bound = (line * parts.number + part) * (geometry.width + 1)
            for x in range(geometry.width):
                bounds[bound + x] = k
                at = (line * geometry.width + x) * geometry.channels + start
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


@compiled
def _convolve(begin, end, lists, weight, shift, outputs, geometry, parts):  # type: ignore[no-untyped-def]
    """Blocks of `WIDTH` outputs, for each block all lines: the items begin <= i < end of blocks times lines."""
    bounds, places, values = lists
    lines, columns = geometry.batch * geometry.out_height, geometry.kernel_width
    length, width = geometry.kernel_height * columns * geometry.channels, shift.size
    rows = np.zeros(parts.lines * columns * parts.channels * WIDTH, weight.dtype)
    for block in range(begin // lines, math.ceil(end / lines)):
        out = block * WIDTH
        low_line, high_line = max(begin - block * lines, 0), min(end - block * lines, lines)
        for part in range(parts.number):
            start = part * parts.channels
            size = min(parts.channels, geometry.channels - start)
            for top in range(0, geometry.kernel_height, parts.lines):
                bottom = min(top + parts.lines, geometry.kernel_height)
                for tap in range((bottom - top) * columns):
                    transpose(
                        weight, out * length + (top * columns + tap) * geometry.channels + start, length,
                        rows, tap * size * WIDTH, WIDTH, size, min(WIDTH, geometry.out_channels - out),
                    )  # fmt: skip
                for line in range(low_line, high_line):
                    y = line % geometry.out_height * geometry.stride_y - geometry.above
                    low, high = max(top, -y), min(bottom, geometry.height - y)  # lines of the kernel in the picture
                    in_line = line // geometry.out_height * geometry.height + y + low
                    bound = (in_line * parts.number + part) * (geometry.width + 1)
                    for column in range(geometry.out_width):
                        x = column * geometry.stride_x - geometry.before
                        at = (line * geometry.out_width + column) * width + out
                        first = part == 0 and top == 0
                        add_rows(
                            outputs, at, shift if first else outputs, out if first else at,
                            rows, ((low - top) * columns - x) * size, columns * size, places, values,
                            bounds, bound + min(max(x, 0), geometry.width),
                            bound + max(min(x + columns, geometry.width), 0),
                            parts.number * (geometry.width + 1), high - low,
                        )  # fmt: skip


@compiled
def _list_pixels(begin, end, inputs, geometry, bands, lists):  # type: ignore[no-untyped-def]
    """List the active pixels of the chunks begin <= chunk < end, channel after channel; a place is one in the chunk.

    Returns how many entries there are.
    """
    bounds, places, values = lists
    channels, entries = geometry.channels, 0
    whole = channels // MASK * MASK
    counts, nexts = np.empty(channels, np.int32), np.empty(channels, np.int64)
    for chunk in range(begin, end):
        first, last = chunk * bands.in_chunk, min((chunk + 1) * bands.in_chunk, bands.number)
        low = first // bands.in_picture * geometry.height + first % bands.in_picture * bands.lines
        high = last // bands.in_picture * geometry.height + last % bands.in_picture * bands.lines
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
            band = line // geometry.height * bands.in_picture + y // bands.lines - first
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


@compiled
def _copy_errors(chunk, block, errors, geometry, bands, rows):  # type: ignore[no-untyped-def]
    """The errors of a block of outputs that a chunk's inputs take part in, with zeros where there is no output."""
    first, last = chunk * bands.in_chunk, min((chunk + 1) * bands.in_chunk, bands.number)
    size = min(WIDTH, geometry.out_channels - block * WIDTH)
    above = geometry.kernel_height - 1 - geometry.above
    before = geometry.kernel_width - 1 - geometry.before
    for band in range(first, last):
        top = band % bands.in_picture * bands.lines - above
        for line in range(bands.band // bands.line):
            y = top + line
            for column in range(bands.line):
                x = column - before
                to = ((band - first) * bands.band + line * bands.line + column) * WIDTH
                if 0 <= y < geometry.out_height and 0 <= x < geometry.out_width:
                    pixel = (band // bands.in_picture * geometry.out_height + y) * geometry.out_width + x
                    at = pixel * geometry.out_channels + block * WIDTH
                    rows[to : to + size] = errors[at : at + size]
                else:
                    rows[to : to + WIDTH] = ZERO


@compiled
def _correlate(begin, end, lists, errors, gradient, geometry, bands, tile):  # type: ignore[no-untyped-def]
    """Blocks of `WIDTH` outputs, for each block all channels: the items begin <= i < end of blocks times channels.

    `tile` channels are summed at a time, on top of what the gradient is.
    """
    bounds, places, values = lists
    channels, columns = geometry.channels, geometry.kernel_width
    taps = geometry.kernel_height * columns
    chunks = math.ceil(bands.number / bands.in_chunk)
    rows = np.zeros(bands.in_chunk * bands.band * WIDTH, errors.dtype)
    sums = np.zeros(taps * tile * WIDTH, errors.dtype)
    for block in range(begin // channels, math.ceil(end / channels)):
        size = min(WIDTH, geometry.out_channels - block * WIDTH)
        start, stop = max(begin - block * channels, 0), min(end - block * channels, channels)
        copied = -1
        for low in range(start, stop, tile):
            high = min(low + tile, stop)
            at = block * WIDTH * taps * channels + low
            for tap in range(taps):
                transpose(
                    gradient, at + tap * channels, taps * channels,
                    sums, tap * tile * WIDTH, WIDTH, high - low, size,
                )  # fmt: skip
            for chunk in range(chunks):
                if copied != chunk:
                    _copy_errors(chunk, block, errors, geometry, bands, rows)
                    copied = chunk
                for channel in range(low, high):
                    bound = chunk * (channels + 1) + channel
                    for tap in range(taps):
                        sum_at = (tap * tile + channel - low) * WIDTH
                        y, x = geometry.kernel_height - 1 - tap // columns, columns - 1 - tap % columns
                        add_rows(
                            sums, sum_at, sums, sum_at, rows, y * bands.line + x, 0,
                            places, values, bounds, bound, bound + 1, 0, 1,
                        )  # fmt: skip
            for tap in range(taps):
                transpose(
                    sums, tap * tile * WIDTH, WIDTH,
                    gradient, at + tap * channels, taps * channels, size, high - low,
                )  # fmt: skip


def density(inputs: Tensor) -> float:
    """The share of the inputs, float32 on the CPU, that is not 0."""
    if inputs.dim() == 4:
        inputs = inputs.permute(0, 2, 3, 1)  # so that channels-last pictures are counted as they lie in memory
    flat = _flat(inputs.contiguous())
    return sum(over_ranges(_count, flat.size, VALUES, flat)) / max(1, flat.size)


def supports(inputs: Tensor, weight: Tensor, dilation: Pair = (1, 1), groups: int = 1) -> bool:
    """Whether these functions can take the place of this linear layer or convolution."""
    return (
        inputs.device.type == weight.device.type == "cpu"
        and inputs.dtype == weight.dtype == torch.float32
        and inputs.dim() == weight.dim()
        and weight.dim() in (2, 4)
        and tuple(dilation) == (1, 1)
        and groups == 1
        and inputs.numel() > 0
    )


def convolution(
    inputs: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Pair = (1, 1), padding: Pair = (1, 1)
) -> Tensor:
    """Convolve `[N, in, H, W]` with `[out, in, *, *]` to `[N, out, *, *]` (channels-last).

    Args:
        bias: `[out]`.
        stride, padding: of height and width; outside of the picture are zeros.
    """
    geometry = Geometry.of(inputs, weight, stride, padding)
    parts = Parts.of(geometry)
    lines, items = geometry.batch * geometry.height, geometry.blocks * geometry.batch * geometry.out_height
    lists = Lists.empty(lines * parts.number * (geometry.width + 1), inputs)
    worth = math.ceil(VALUES / (geometry.width * geometry.channels))
    spikes = sum(over_ranges(_list_channels, lines, worth, _flat(_last(inputs)), geometry, parts, lists))
    shift = inputs.new_zeros(geometry.blocks * WIDTH)
    if bias is not None:
        shift[: geometry.out_channels] = bias.detach()
    outputs = inputs.new_empty(geometry.batch, geometry.out_height, geometry.out_width, shift.numel())
    over_ranges(
        _convolve, items, geometry.worth_a_thread(items, spikes),
        lists, _flat(_last(weight)), shift.numpy(), _flat(outputs), geometry, parts,
    )  # fmt: skip
    return outputs[..., : geometry.out_channels].contiguous().permute(0, 3, 1, 2)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply `[N, in]` by the weight `[out, in]`, and add the bias `[out]`: `[N, out]`."""
    pictures, kernel = inputs[:, :, None, None], weight[:, :, None, None]
    return convolution(pictures, kernel, bias, padding=(0, 0))[:, :, 0, 0]


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
    lists = Lists.empty(bands.chunks * (channels + 1), inputs)
    worth = math.ceil(VALUES / (bands.in_chunk * bands.lines * geometry.width * channels))
    spikes = sum(over_ranges(_list_pixels, bands.chunks, worth, _flat(_last(inputs)), geometry, bands, lists))
    tile = math.ceil(channels / math.ceil(channels * geometry.taps / SUMS))
    over_ranges(
        _correlate, blocks * channels, geometry.worth_a_thread(blocks * channels, spikes),
        lists, _flat(_last(errors)), _flat(gradient), geometry, bands, tile,
    )  # fmt: skip


def _last(values: Tensor) -> Tensor:
    """`[N, C, H, W]` as a contiguous `[N, H, W, C]`: a view where it lies in memory like that."""
    return values.detach().permute(0, 2, 3, 1).contiguous()


def _flat(values: Tensor) -> Any:
    """The numpy array of a contiguous tensor's memory."""
    return values.detach().view(-1).numpy()
