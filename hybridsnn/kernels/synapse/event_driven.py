"""Synapses on a CPU that cost as much as there are spikes: convolutions and linear layers.

Where a share r of the inputs is not 0, only r of the multiplications and additions are needed. The inputs become lists
of what is not 0, and what remains is to add rows of the weight:

    outputs[pixel] = bias + sum of value * weight[tap, channel] over what is active among the taps of the pixel

Each row has the outputs of a block, whose sums stay in registers (`vectors.add_rows`). The rows that may be needed are
copied together to where they fit the second-level cache, and all images run through them before the next ones follow.

Every sum has an order of its own, which depends on no other image and no other thread: cutting a batch, or sharing it
among threads, changes no bit; `direct` adds in the same order. It is exact where float32 is. Inputs may be any numbers;
most should be 0.

Images are `[N, channels, height, width]`, best channels-last; a linear layer sees images of one pixel. Everything is
float32 and records no gradients. `geometry.supports` says what can be run, `costs` what is worth it.
"""

import math

import torch
from torch import Tensor

from hybridsnn.kernels.compilation import compiled
from hybridsnn.kernels.synapse import lists
from hybridsnn.kernels.synapse.geometry import Geometry, Pair, Parts, channels_last, flat
from hybridsnn.kernels.synapse.lists import Lists, list_channels
from hybridsnn.kernels.synapse.matrices import room
from hybridsnn.kernels.synapse.vectors import add_rows, transpose
from hybridsnn.kernels.threads import over_ranges


@compiled(nogil=True, error_model="numpy")
def copy_rows(block, part, top, bottom, weight, rows, geometry, parts):  # type: ignore[no-untyped-def]
    """The rows of a block of output channels, for a part of the channels and some lines of the kernel."""
    width, start = geometry.width_of_block, part * parts.channels
    size = min(parts.channels, geometry.channels - start)
    columns, length = geometry.kernel_width, geometry.kernel_height * geometry.kernel_width * geometry.channels
    for tap in range((bottom - top) * columns):
        transpose(
            weight, block * width * length + (top * columns + tap) * geometry.channels + start, length,
            rows, tap * size * width, width, size, min(width, geometry.out_channels - block * width),
        )  # fmt: skip


@compiled(nogil=True, error_model="numpy")
def _convolve(begin, end, lists, weight, starts, outputs, frames, geometry, parts):  # type: ignore[no-untyped-def]
    """Blocks of outputs, for each block all lines: the items begin <= i < end of blocks times lines of outputs."""
    bounds, places, values = lists
    lines, columns, width = frames.size * geometry.out_height, geometry.kernel_width, geometry.width_of_block
    rows = room(parts.lines * columns * parts.channels * width)
    rows[:] = 0
    for block in range(begin // lines, math.ceil(end / lines)):
        out = block * width
        low_line, high_line = max(begin - block * lines, 0), min(end - block * lines, lines)
        for part in range(parts.number):
            size = min(parts.channels, geometry.channels - part * parts.channels)
            for top in range(0, geometry.kernel_height, parts.lines):
                bottom = min(top + parts.lines, geometry.kernel_height)
                copy_rows(block, part, top, bottom, weight, rows, geometry, parts)
                first = part == 0 and top == 0
                for line in range(low_line, high_line):
                    y = line % geometry.out_height * geometry.stride_y - geometry.above
                    low, high = max(top, -y), min(bottom, geometry.height - y)  # lines of the kernel in the image
                    in_line = line // geometry.out_height * geometry.height + y + low
                    out_line = frames[line // geometry.out_height] * geometry.out_height + line % geometry.out_height
                    bound = (in_line * parts.number + part) * (geometry.width + 1)
                    for column in range(geometry.out_width):
                        x = column * geometry.stride_x - geometry.before
                        at = (out_line * geometry.out_width + column) * starts.size + out
                        add_rows(
                            width, outputs, at, starts if first else outputs, out if first else at,
                            rows, ((low - top) * columns - x) * size, columns * size, places, values,
                            bounds, bound + min(max(x, 0), geometry.width),
                            bound + max(min(x + columns, geometry.width), 0),
                            parts.number * (geometry.width + 1), high - low,
                        )  # fmt: skip


def convolution(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (1, 1),
    *,
    frames: Tensor | None = None,
    into: Tensor | None = None,
) -> Tensor:
    """Convolve `[N, in, H, W]` with `[out, in, *, *]` to `[N, out, *, *]` (channels-last).

    Args:
        bias: `[out]`.
        stride, padding: of height and width; outside of the image are zeros.
        frames: int64, which of the N images to convolve; all by default.
        into: `Geometry.room_for_outputs`, which is written to, and returned with all the channels that it has.
    """
    geometry = Geometry.of(inputs, weight, stride, padding)
    starts, parts = geometry.starts(inputs, bias), Parts.of(geometry)
    outputs = geometry.room_for_outputs(inputs) if into is None else into
    frames = torch.arange(geometry.batch) if frames is None else frames
    lines, items = len(frames) * geometry.height, geometry.blocks * len(frames) * geometry.out_height
    width = geometry.width * geometry.channels
    found = Lists.empty(lines * parts.number * (geometry.width + 1), lines * width)
    active = sum(
        over_ranges(
            list_channels, lines, math.ceil(lists.VALUES / width),
            flat(channels_last(inputs)), frames.numpy(), geometry, parts, found,
        )
    )  # fmt: skip
    over_ranges(
        _convolve, items, geometry.worth_a_thread(items, active),
        found, flat(channels_last(weight)), starts.numpy(), flat(outputs), frames.numpy(), geometry, parts,
    )  # fmt: skip
    return geometry.cut(outputs) if into is None else outputs.permute(0, 3, 1, 2)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply `[N, in]` by the weight `[out, in]`, and add the bias `[out]`: `[N, out]`."""
    images, kernel = inputs[:, :, None, None], weight[:, :, None, None]
    return convolution(images, kernel, bias, padding=(0, 0))[:, :, 0, 0]
