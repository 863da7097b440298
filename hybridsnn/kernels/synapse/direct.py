"""Dense convolutions and linear layers on a CPU, with the bits of `event_driven`, which leaves out what adds nothing.

    outputs[pixel] = bias + sum of inputs[pixel + tap, channel] * weight[tap, channel]

in the order of `event_driven`: a product with 0 changes no sum, so which of the two runs is a matter of time alone. No
bit depends on how many frames there are, or on threads. Where the rows of a weight are few, what a pixel sees is copied
together, with zeros for the taps outside the image. Else a few frames run together, at the same pixel of each, for
which the taps inside are the same.

Images are `[N, channels, height, width]`, best channels-last; everything is float32 and records no gradients.
"""

import math

from torch import Tensor

from hybridsnn.kernels.compilation import compiled
from hybridsnn.kernels.synapse.event_driven import copy_rows
from hybridsnn.kernels.synapse.geometry import Geometry, Pair, Parts, channels_last, flat
from hybridsnn.kernels.synapse.matrices import multiply_add, room
from hybridsnn.kernels.synapse.vectors import clear, copy
from hybridsnn.kernels.threads import over_ranges

PIXELS = 96  # whose taps are copied together
FRAMES = 48  # that run together, a strip of them (`matrices.STRIPS`) after the other
TOGETHER = (
    128  # rows of a weight that all of them are multiplied with before the next ones: they fit the first-level cache
)


@compiled(nogil=True, error_model="numpy")
def _convolve_copies(begin, end, inputs, weight, starts, outputs, geometry, parts):  # type: ignore[no-untyped-def]
    """Blocks of outputs, for each block all lines of all frames: the items begin <= i < end of these."""
    lines, width, channels = geometry.batch * geometry.out_height, geometry.width_of_block, geometry.channels
    line, count = geometry.kernel_width * channels, geometry.kernel_height * geometry.kernel_width * channels
    together = max(1, PIXELS // geometry.out_width)
    rows, seen = room(count * width), room(together * geometry.out_width * count)
    rows[:] = 0
    for block in range(begin // lines, math.ceil(end / lines)):
        out = block * width
        copy_rows(block, 0, 0, geometry.kernel_height, weight, rows, geometry, parts)
        low_line, high_line = max(begin - block * lines, 0), min(end - block * lines, lines)
        for first in range(low_line, high_line, together):
            last, to = min(first + together, high_line), 0
            for out_line in range(first, last):
                frame, top = out_line // geometry.out_height, out_line % geometry.out_height * geometry.stride_y
                for column in range(geometry.out_width):
                    x = column * geometry.stride_x - geometry.before
                    left = min(max(0, -x), geometry.kernel_width) * channels
                    right = max(left, min(geometry.kernel_width, geometry.width - x) * channels)
                    for y in range(top - geometry.above, top - geometry.above + geometry.kernel_height):
                        at = ((frame * geometry.height + y) * geometry.width + x) * channels
                        inside = 0 <= y < geometry.height
                        if inside:
                            clear(seen, to, left)
                            copy(inputs, at + left, seen, to + left, right - left)
                            clear(seen, to + right, line - right)
                        else:
                            clear(seen, to, line)
                        to += line
            multiply_add(
                (last - first) * geometry.out_width, width,
                outputs, first * geometry.out_width * starts.size + out, starts.size, starts, out, 0,
                seen, 0, count, 1, rows, 0, width, count,
            )  # fmt: skip


@compiled(nogil=True, error_model="numpy")
def _convolve(begin, end, inputs, weight, starts, outputs, geometry, parts):  # type: ignore[no-untyped-def]
    """Blocks of outputs, for each block all lines of all groups of frames: the items begin <= i < end of these."""
    lines = math.ceil(geometry.batch / FRAMES) * geometry.out_height
    columns, channels, width = geometry.kernel_width, geometry.channels, geometry.width_of_block
    frame = geometry.height * geometry.width * channels
    out_frame = geometry.out_height * geometry.out_width * starts.size
    rows = room(parts.lines * columns * parts.channels * width)
    rows[:] = 0
    for block in range(begin // lines, math.ceil(end / lines)):
        out = block * width
        low_line, high_line = max(begin - block * lines, 0), min(end - block * lines, lines)
        for part in range(parts.number):
            start = part * parts.channels
            size = min(parts.channels, channels - start)
            for top in range(0, geometry.kernel_height, parts.lines):
                bottom = min(top + parts.lines, geometry.kernel_height)
                copy_rows(block, part, top, bottom, weight, rows, geometry, parts)
                for line in range(low_line, high_line):
                    first_frame, out_y = line // geometry.out_height * FRAMES, line % geometry.out_height
                    frames = min(FRAMES, geometry.batch - first_frame)
                    y = out_y * geometry.stride_y - geometry.above
                    for column in range(geometry.out_width):
                        x = column * geometry.stride_x - geometry.before
                        left, right = max(0, -x), min(columns, geometry.width - x)
                        at = first_frame * out_frame + (out_y * geometry.out_width + column) * starts.size + out
                        if part == 0 and top == 0:
                            multiply_add(
                                frames, width, outputs, at, out_frame, starts, out, 0, inputs, 0, 0, 0, rows, 0, 0, 0
                            )
                        # With all channels the taps of a line are one sum, else each tap is.
                        together = max(1, right - left) if size == channels else 1
                        for tap_y in range(max(top, -y), min(bottom, geometry.height - y)):
                            for tap_x in range(left, right, together):
                                tap = (tap_y - top) * columns + tap_x
                                pixel = (y + tap_y) * geometry.width + x + tap_x
                                place = first_frame * frame + pixel * channels + start
                                for k in range(0, together * size, TOGETHER):
                                    multiply_add(
                                        frames, width, outputs, at, out_frame, outputs, at, out_frame,
                                        inputs, place + k, frame, 1, rows, (tap * size + k) * width, width,
                                        min(TOGETHER, together * size - k),
                                    )  # fmt: skip


def convolution(
    inputs: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Pair = (1, 1), padding: Pair = (1, 1)
) -> Tensor:
    """Convolve `[N, in, H, W]` with `[out, in, *, *]` to `[N, out, *, *]` (channels-last).

    Args:
        bias: `[out]`.
        stride, padding: of height and width; outside of the image are zeros.
    """
    geometry = Geometry.of(inputs, weight, stride, padding)
    outputs, starts, parts = geometry.room_for_outputs(inputs), geometry.starts(inputs, bias), Parts.of(geometry)
    copies = (
        parts.number == 1 and parts.lines == geometry.kernel_height and geometry.out_height * geometry.out_width > 1
    )
    groups = geometry.batch if copies else math.ceil(geometry.batch / FRAMES)
    items = geometry.blocks * groups * geometry.out_height
    over_ranges(
        _convolve_copies if copies else _convolve, items, geometry.worth_a_thread(items, inputs.numel()),
        flat(channels_last(inputs)), flat(channels_last(weight)), starts.numpy(), flat(outputs), geometry, parts,
    )  # fmt: skip
    return geometry.cut(outputs)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply `[N, in]` by the weight `[out, in]`, and add the bias `[out]`: `[N, out]`."""
    images, kernel = inputs[:, :, None, None], weight[:, :, None, None]
    return convolution(images, kernel, bias, padding=(0, 0))[:, :, 0, 0]
