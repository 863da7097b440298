"""Tiles of 2x2 and of 4x4 outputs, and the compiled loops that cut images into them, transform them and merge them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from hybridsnn.kernels.synapse.matrices import multiply_add, room
from hybridsnn.kernels.synapse.vectors import LINE, transpose
from hybridsnn.kernels.synapse.winograd_lines import (
    errors_of_four,
    errors_of_two,
    four,
    gradients_of_four,
    gradients_of_two,
    inputs_of_four,
    inputs_of_two,
    line,
    outputs_of_four,
    outputs_of_two,
    six,
    three,
    two,
    weight_gradients_of_four,
    weight_gradients_of_two,
    weights_of_four,
    weights_of_two,
)


@line
def _deal(image_line, channels, margin, places, dealt):  # type: ignore[no-untyped-def]
    """Columns of an image apart: those of the same place in their tiles together, so that all tiles make long lines.

    There are `margin` columns before the first one, and `places` columns to a tile.
    """
    length = dealt.size // places
    for column in range(image_line.size // channels):
        source = image_line[column * channels : (column + 1) * channels]
        start = (column + margin) % places * length + (column + margin) // places * channels
        target = dealt[start : start + channels]
        for i in range(channels):
            target[i] = source[i]


@line
def _collect(dealt, places, shift, image_line, first, step):  # type: ignore[no-untyped-def]
    """The inverse of `_deal` without a margin, plus the shift of each channel, to the channels from `first` on.

    From a column to the next there are `step` channels.
    """
    channels, length = shift.size, dealt.size // places
    for column in range(image_line.size // step):
        start, to = column % places * length + column // places * channels, column * step + first
        source, target = dealt[start : start + channels], image_line[to : to + channels]
        for i in range(channels):
            target[i] = source[i] + shift[i]


@numba.njit
def _width_of(columns):  # type: ignore[no-untyped-def]
    """How many columns of a matrix are computed at a time."""
    return 64 if columns >= 64 else 32 if columns >= 32 else 16


@numba.njit(cache=True, nogil=True)
def multiply(begin, end, tiles, weight, products, rows, channels, outs):  # type: ignore[no-untyped-def]
    """products[m] = tiles[m] weight[m] for the matrices begin <= m < end, of `[rows, channels]` and `[channels, outs]`.

    The last columns are computed together with some of those before them, which get the same bits again.
    """
    width, nothing = _width_of(outs), np.zeros(64, tiles.dtype)
    for matrix in range(begin, end):
        for first in range(0, outs, width):
            out = min(first, outs - width)
            multiply_add(
                rows, width, products, matrix * rows * outs + out, outs, nothing, 0, 0,
                tiles, matrix * rows * channels, channels, 1,
                weight, matrix * channels * outs + out, outs, channels,
            )  # fmt: skip


@numba.njit(cache=True, nogil=True)
def multiply_transposed(begin, end, tiles, weight, products, rows, outs, channels):  # type: ignore[no-untyped-def]
    """products[m] = tiles[m] weight[m]^T for the matrices begin <= m < end: `[rows, outs]` and `[channels, outs]`."""
    width, nothing = _width_of(channels), np.zeros(64, tiles.dtype)
    panel = room(outs * width)
    for matrix in range(begin, end):
        for first in range(0, channels, width):
            channel = min(first, channels - width)
            transpose(weight, (matrix * channels + channel) * outs, outs, panel, 0, width, outs, width)
            multiply_add(
                rows, width, products, matrix * rows * channels + channel, channels, nothing, 0, 0,
                tiles, matrix * rows * outs, outs, 1, panel, 0, width, outs,
            )  # fmt: skip


@numba.njit(cache=True, nogil=True)
def correlate(begin, end, errors, tiles, sums, rows, outs, channels):  # type: ignore[no-untyped-def]
    """sums[m] += errors[m]^T tiles[m] for the matrices begin <= m < end, of `[rows, outs]` and `[rows, channels]`.

    The last columns, where they are computed together with some before them, must not be added twice.
    """
    width = _width_of(channels)
    whole = channels // width * width
    last, kept = channels - width, np.empty(width, sums.dtype)
    for matrix in range(begin, end):
        for first in range(0, whole, width):
            at = matrix * outs * channels + first
            multiply_add(
                outs, width, sums, at, channels, sums, at, channels,
                errors, matrix * rows * outs, 1, outs, tiles, matrix * rows * channels + first, channels, rows,
            )  # fmt: skip
        if whole < channels:
            at = matrix * outs * channels + last
            for out in range(outs):
                kept[:] = sums[at + out * channels : at + out * channels + width]
                multiply_add(
                    1, width, sums, at + out * channels, channels, sums, at + out * channels, channels,
                    errors, matrix * rows * outs + out, 1, outs,
                    tiles, matrix * rows * channels + last, channels, rows,
                )  # fmt: skip
                for i in range(whole - last):
                    sums[at + out * channels + i] = kept[i]


@dataclass(frozen=True)
class Tiling:
    """Tiles of some size, with compiled loops that transform them."""

    outputs: int  # that a tile is wide and high
    transform_inputs: Callable[..., None]
    transform_errors: Callable[..., None]
    merge_input_gradient: Callable[..., None]
    transform_weight: Callable[..., None]
    merge_weight_gradient: Callable[..., None]
    convolve: Callable[..., None]

    @property
    def matrices(self) -> int:
        """How many values a tile is transformed to."""
        return (self.outputs + 2) ** 2

    def rows(self, height: int) -> int:
        """How many tiles cover a height or width."""
        return math.ceil(height / self.outputs)

    def tiles(self, height: int, width: int) -> int:
        """How many tiles cover an image."""
        return self.rows(height) * self.rows(width)


def _tiling(
    outputs: int,
    take_outputs: Callable[..., Any],
    take: Callable[..., Any],
    line_of_inputs: Callable[..., None],
    line_of_errors: Callable[..., None],
    line_of_outputs: Callable[..., None],
    line_of_gradients: Callable[..., None],
    line_of_weights: Callable[..., None],
    line_of_weight_gradients: Callable[..., None],
) -> Tiling:
    """Compile the loops around the transforms of lines.

    Args:
        outputs: that a tile is wide and high.
        take_outputs, take: give a tuple of as many lines as a tile has outputs, and inputs.
        line_of_inputs: and the others, the transforms in one dimension.
    """
    inputs = outputs + 2
    matrices = inputs**2

    @numba.njit(cache=True, nogil=True)
    def transform(begin, end, images, frames, channels, tiles, start):  # type: ignore[no-untyped-def]
        """B^T inputs B for the rows of tiles begin <= row < end, those of the images named by `frames` together.

        In `tiles`, row `start` comes first.
        """
        _, height, width = images.shape
        rows, columns = math.ceil(height / outputs), math.ceil(width / (channels * outputs))
        length = columns * channels
        span = outputs * (length + channels)
        # The first column and what comes after the last ones lie outside the image.
        window, values = np.zeros((inputs, span), images.dtype), np.empty((inputs, span), images.dtype)
        lines = values.reshape(inputs * outputs, length + channels)
        for row in range(begin, end):
            image, top = images[frames[row // rows]], row % rows * outputs - 1
            at = (row - start) * length
            for i in range(inputs):
                if 0 <= top + i < height:
                    _deal(image[top + i], channels, 1, outputs, window[i])
                else:
                    window[i] = 0
            line_of_inputs(take(window, 0, 1, 0, span), take(values, 0, 1, 0, span))
            for i in range(inputs):
                line_of_inputs(
                    take_outputs(lines, i * outputs, 1, 0, length)
                    + two(lines, i * outputs, 1, channels, length + channels),
                    take(tiles, i * inputs, 1, at, at + length),
                )

    @numba.njit(cache=True, nogil=True)
    def transform_inputs(begin, end, images, channels, tiles):  # type: ignore[no-untyped-def]
        """The same of all images."""
        transform(begin, end, images, np.arange(len(images)), channels, tiles, 0)

    @numba.njit(cache=True, nogil=True)
    def transform_errors(begin, end, images, channels, tiles):  # type: ignore[no-untyped-def]
        """A errors A^T for the rows of tiles begin <= row < end."""
        _, height, width = images.shape
        rows, columns = math.ceil(height / outputs), math.ceil(width / (channels * outputs))
        length = columns * channels
        span = outputs * length
        window, values = np.zeros((outputs, span), images.dtype), np.empty((inputs, span), images.dtype)
        lines = values.reshape(inputs * outputs, length)
        for row in range(begin, end):
            image, top = images[row // rows], row % rows * outputs
            for i in range(outputs):
                if top + i < height:
                    _deal(image[top + i], channels, 0, outputs, window[i])
                else:
                    window[i] = 0
            line_of_errors(take_outputs(window, 0, 1, 0, span), take(values, 0, 1, 0, span))
            for i in range(inputs):
                line_of_errors(
                    take_outputs(lines, i * outputs, 1, 0, length),
                    take(tiles, i * inputs, 1, row * length, (row + 1) * length),
                )

    @numba.njit(cache=True, nogil=True)
    def merge_outputs(begin, end, images, frames, first, step, tiles, shift):  # type: ignore[no-untyped-def]
        """A^T products A, plus the shift of every channel, for the rows of tiles begin <= row < end."""
        _, height, width = images.shape
        channels = shift.size
        rows, columns = math.ceil(height / outputs), math.ceil(width / (step * outputs))
        length = columns * channels
        span = outputs * length
        window, values = np.empty((outputs, span), images.dtype), np.empty((inputs, span), images.dtype)
        lines = values.reshape(inputs * outputs, length)
        for row in range(begin, end):
            image, top = images[frames[row // rows]], row % rows * outputs
            at = (row - begin) * length
            for i in range(inputs):
                line_of_outputs(
                    take(tiles, i * inputs, 1, at, at + length),
                    take_outputs(lines, i * outputs, 1, 0, length),
                )
            line_of_outputs(take(values, 0, 1, 0, span), take_outputs(window, 0, 1, 0, span))
            for i in range(min(outputs, height - top)):
                _collect(window[i], outputs, shift, image[top + i], first, step)

    @numba.njit(cache=True, nogil=True)
    def merge_input_gradient(begin, end, images, channels, tiles):  # type: ignore[no-untyped-def]
        """B products B^T, summed where tiles overlap, for the rows of tiles begin <= row < end."""
        _, height, width = images.shape
        rows, columns = math.ceil(height / outputs), math.ceil(width / (channels * outputs))
        length = columns * channels
        zeros = np.zeros(length, images.dtype)
        lines = np.zeros((outputs * inputs, length + 2 * channels), images.dtype)  # a tile of zeros on either side
        window = np.empty(outputs * length, images.dtype)
        for row in range(begin, end):
            image, top = images[row // rows], row % rows * outputs
            first, last = row * length, (row + 1) * length
            for i in range(inputs):
                line_of_gradients(
                    tiles[(inputs - 1) * inputs + i, first - length : first] if top > 0 else zeros,
                    take(tiles, i, inputs, first, last),
                    tiles[i, last : last + length] if top + outputs < height else zeros,
                    take_outputs(lines, i, inputs, channels, channels + length),
                )
            for i in range(min(outputs, height - top)):
                line_of_gradients(
                    lines[(i + 1) * inputs - 1, :length],
                    take(lines, i * inputs, 1, channels, channels + length),
                    lines[i * inputs, 2 * channels :],
                    take_outputs(window.reshape(outputs, length), 0, 1, 0, length),
                )
                _collect(window, outputs, zeros[:channels], image[top + i], 0, channels)

    @numba.njit(cache=True, nogil=True)
    def transform_weight(begin, end, filters, transformed):  # type: ignore[no-untyped-def]
        """G weight G^T, `[matrices, in, out]`, for the output channels begin <= channel < end."""
        channels, count = filters.shape[1], filters.shape[0] // 9
        lines = np.empty((inputs * 3, channels), filters.dtype)
        few = np.empty((matrices, LINE, channels), filters.dtype)  # before rows become columns
        for low in range(begin, end, LINE):
            high = min(low + LINE, end)
            for channel in range(low, high):
                for i in range(3):
                    line_of_weights(three(filters, channel * 9 + i, 3, 0, channels), take(lines, i, 3, 0, channels))
                for i in range(inputs):
                    line_of_weights(
                        three(lines, i * 3, 1, 0, channels),
                        take(few[:, channel - low], i * inputs, 1, 0, channels),
                    )
            for matrix in range(matrices):
                transpose(
                    few.reshape(-1), matrix * LINE * channels, channels,
                    transformed, matrix * channels * count + low, count, channels, high - low,
                )  # fmt: skip

    @numba.njit(cache=True, nogil=True)
    def merge_weight_gradient(begin, end, filters, transformed):  # type: ignore[no-untyped-def]
        """G^T products G for the output channels begin <= channel < end."""
        count, channels = filters.shape[0] // 9, filters.shape[1]
        lines = np.empty((inputs * 3, channels), filters.dtype)
        for channel in range(begin, end):
            for i in range(inputs):
                line_of_weight_gradients(
                    take(transformed, i * inputs * count + channel, count, 0, channels),
                    three(lines, i * 3, 1, 0, channels),
                )
            for i in range(3):
                line_of_weight_gradients(
                    take(lines, i, 3, 0, channels), three(filters, channel * 9 + i, 3, 0, channels)
                )

    @numba.njit(cache=True, nogil=True)
    def convolve(begin, end, images, frames, channels, weight, made, first, step, shift, together):  # type: ignore[no-untyped-def]
        """All of it, from images to the images made, for the rows of tiles begin <= row < end, a few rows together."""
        columns, out_channels = math.ceil(images.shape[2] / (channels * outputs)), shift.size
        tiles = room(matrices * together * columns * channels)
        products = room(matrices * together * columns * out_channels)
        for low in range(begin, end, together):
            high = min(low + together, end)
            count = (high - low) * columns
            few, few_products = tiles[: matrices * count * channels], products[: matrices * count * out_channels]
            transform(low, high, images, frames, channels, few.reshape(matrices, -1), low)
            multiply(0, matrices, few, weight, few_products, count, channels, out_channels)
            merge_outputs(low, high, made, frames, first, step, few_products.reshape(matrices, -1), shift)

    return Tiling(
        outputs, transform_inputs, transform_errors, merge_input_gradient,
        transform_weight, merge_weight_gradient, convolve,
    )  # fmt: skip


# By the number of matrices, which the first size of a transformed weight shows.
TILINGS = {
    tiling.matrices: tiling
    for tiling in (
        _tiling(
            2,
            two,
            four,
            line_of_inputs=inputs_of_two,
            line_of_errors=errors_of_two,
            line_of_outputs=outputs_of_two,
            line_of_gradients=gradients_of_two,
            line_of_weights=weights_of_two,
            line_of_weight_gradients=weight_gradients_of_two,
        ),
        _tiling(
            4,
            four,
            six,
            line_of_inputs=inputs_of_four,
            line_of_errors=errors_of_four,
            line_of_outputs=outputs_of_four,
            line_of_gradients=gradients_of_four,
            line_of_weights=weights_of_four,
            line_of_weight_gradients=weight_gradients_of_four,
        ),
    )
}
