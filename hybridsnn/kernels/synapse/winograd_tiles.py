"""Tiles of 2x2 and of 4x4 outputs, and the compiled loops that cut images into them, transform them and merge them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numba.extending import register_jitable

from hybridsnn.kernels.compilation import compiled
from hybridsnn.kernels.synapse.matrices import multiply_add, room
from hybridsnn.kernels.synapse.vectors import LINE, clear, copy, transpose
from hybridsnn.kernels.synapse.winograd_formulas import (
    errors_of_four,
    errors_of_two,
    four,
    gradients_of_four,
    gradients_of_two,
    inputs_of_four,
    inputs_of_two,
    outputs_of_four,
    outputs_of_two,
    six,
    two,
    weight_gradients_of_four,
    weight_gradients_of_two,
    weights_of_four,
    weights_of_two,
)


@register_jitable
def _cut(images, frame, top, left, size, channels, patch):  # type: ignore[no-untyped-def]
    """A square of an image, with zeros where it lies outside."""
    _, height, width = images.shape
    flat, line = images.reshape(-1), size * channels
    low, high = max(0, -left) * channels, min(line, width - left * channels)  # of a line of the square
    for i in range(size):
        inside = 0 <= top + i < height
        start = (frame * height + top + i) * width + left * channels
        if inside:
            clear(patch, i * line, low)
            copy(flat, start + low, patch, i * line + low, high - low)
            clear(patch, i * line + high, line - high)
        else:
            clear(patch, i * line, line)


@register_jitable
def _collect(dealt, places, channels, image_line):  # type: ignore[no-untyped-def]
    """Columns of an image, of which those of the same place in their tiles lie together, side by side."""
    length = dealt.size // places
    for column in range(image_line.size // channels):
        start = column % places * length + column // places * channels
        image_line[column * channels : (column + 1) * channels] = dealt[start : start + channels]


@numba.njit
def _width_of(columns):  # type: ignore[no-untyped-def]
    """How many columns of a matrix are computed at a time."""
    return 64 if columns >= 64 else 32 if columns >= 32 else 16


# Tiles and products are `[matrices, rows * columns + LINE]`: a line of the cache apart, because places that are a large
# power of two apart would push each other out of it.


@compiled(nogil=True)
def multiply(begin, end, tiles, weight, products, rows, channels, outs):  # type: ignore[no-untyped-def]
    """products[m] = tiles[m] weight[m] for the matrices begin <= m < end, of `[rows, channels]` and `[channels, outs]`.

    The last columns are computed together with some of those before them, which get the same bits again.
    """
    width, nothing = _width_of(outs), np.zeros(64, tiles.dtype)
    for matrix in range(begin, end):
        for first in range(0, outs, width):
            out = min(first, outs - width)
            multiply_add(
                rows, width, products.reshape(-1), matrix * products.shape[1] + out, outs, nothing, 0, 0,
                tiles.reshape(-1), matrix * tiles.shape[1], channels, 1,
                weight, matrix * channels * outs + out, outs, channels,
            )  # fmt: skip


@compiled(nogil=True)
def multiply_transposed(begin, end, tiles, weight, products, rows, outs, channels):  # type: ignore[no-untyped-def]
    """products[m] = tiles[m] weight[m]^T for the matrices begin <= m < end: `[rows, outs]` and `[channels, outs]`."""
    width, nothing = _width_of(channels), np.zeros(64, tiles.dtype)
    panel = room(outs * width)
    for matrix in range(begin, end):
        for first in range(0, channels, width):
            channel = min(first, channels - width)
            transpose(weight, (matrix * channels + channel) * outs, outs, panel, 0, width, outs, width)
            multiply_add(
                rows, width, products.reshape(-1), matrix * products.shape[1] + channel, channels, nothing, 0, 0,
                tiles.reshape(-1), matrix * tiles.shape[1], outs, 1, panel, 0, width, outs,
            )  # fmt: skip


@compiled(nogil=True)
def correlate(begin, end, errors, tiles, sums, rows, outs, channels):  # type: ignore[no-untyped-def]
    """sums[m] += errors[m]^T tiles[m] for the matrices begin <= m < end, of `[rows, outs]` and `[rows, channels]`.

    The last columns, where they are computed together with some before them, must not be added twice.
    """
    width, flat, flat_tiles = _width_of(channels), errors.reshape(-1), tiles.reshape(-1)
    whole = channels // width * width
    last, kept = channels - width, np.empty(width, sums.dtype)
    for matrix in range(begin, end):
        error, tile = matrix * errors.shape[1], matrix * tiles.shape[1]
        for first in range(0, whole, width):
            at = matrix * outs * channels + first
            multiply_add(
                outs, width, sums, at, channels, sums, at, channels,
                flat, error, 1, outs, flat_tiles, tile + first, channels, rows,
            )  # fmt: skip
        if whole < channels:
            for out in range(outs):
                at = (matrix * outs + out) * channels + last
                kept[:] = sums[at : at + width]
                multiply_add(
                    1, width, sums, at, channels, sums, at, channels,
                    flat, error + out, 1, outs, flat_tiles, tile + last, channels, rows,
                )  # fmt: skip
                sums[at : at + whole - last] = kept[: whole - last]


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
    inputs_of: Callable[..., Any],
    errors_of: Callable[..., Any],
    outputs_of: Callable[..., Any],
    gradients_of: Callable[..., Any],
    weights_of: Callable[..., Any],
    weight_gradients_of: Callable[..., Any],
) -> Tiling:
    """Compile the loops around the transforms of lines.

    Args:
        outputs: that a tile is wide and high.
        take_outputs, take: give a tuple of as many lines as a tile has outputs, and inputs.
        inputs_of: and the others, the transforms in one dimension.
    """
    inputs = outputs + 2
    matrices = inputs**2

    @compiled(nogil=True)
    def cut_inputs(begin, end, images, frames, channels, tiles, start):  # type: ignore[no-untyped-def]
        """B^T inputs B for the rows of tiles begin <= row < end, those of the images named by `frames` together.

        In `tiles`, row `start` comes first.
        """
        _, height, width = images.shape
        rows, columns = math.ceil(height / outputs), math.ceil(width / (channels * outputs))
        flat, flat_tiles, step, patch = images.reshape(-1), tiles.reshape(-1), tiles.shape[1], room(matrices * channels)
        for row in range(begin, end):
            frame, top = frames[row // rows], row % rows * outputs - 1
            for column in range(columns):
                left, to = column * outputs - 1, ((row - start) * columns + column) * channels
                if top >= 0 and top + inputs <= height and left >= 0 and (left + inputs) * channels <= width:
                    at = (frame * height + top) * width + left * channels
                    inputs_of(flat, at, width, channels, flat_tiles, to, inputs * step, step, channels)
                else:
                    _cut(images, frame, top, left, inputs, channels, patch)
                    inputs_of(patch, 0, inputs * channels, channels, flat_tiles, to, inputs * step, step, channels)

    @compiled(nogil=True)
    def transform_inputs(begin, end, images, channels, tiles):  # type: ignore[no-untyped-def]
        """The same of all images."""
        cut_inputs(begin, end, images, np.arange(len(images)), channels, tiles, 0)

    @compiled(nogil=True)
    def transform_errors(begin, end, images, channels, tiles):  # type: ignore[no-untyped-def]
        """A errors A^T for the rows of tiles begin <= row < end."""
        _, height, width = images.shape
        rows, columns = math.ceil(height / outputs), math.ceil(width / (channels * outputs))
        flat_tiles, step, patch = tiles.reshape(-1), tiles.shape[1], room(outputs**2 * channels)
        flat = images.reshape(-1)
        for row in range(begin, end):
            frame, top = row // rows, row % rows * outputs
            for column in range(columns):
                left, to = column * outputs, (row * columns + column) * channels
                if top + outputs <= height and (left + outputs) * channels <= width:
                    at = (frame * height + top) * width + left * channels
                    errors_of(flat, at, width, channels, flat_tiles, to, inputs * step, step, channels)
                else:
                    _cut(images, frame, top, left, outputs, channels, patch)
                    errors_of(patch, 0, outputs * channels, channels, flat_tiles, to, inputs * step, step, channels)

    @compiled(nogil=True)
    def merge_outputs(begin, end, images, frames, first, step, tiles, shift):  # type: ignore[no-untyped-def]
        """A^T products A, plus the shift of every channel, for the rows of tiles begin <= row < end.

        They become the channels from `first` on, of `step` in all, of the images. In `tiles`, row `begin` comes first.
        """
        _, height, width = images.shape
        channels = shift.size
        rows, columns = math.ceil(height / outputs), math.ceil(width / (step * outputs))
        flat, flat_tiles, matrix = images.reshape(-1), tiles.reshape(-1), tiles.shape[1]
        patch, line = room(outputs**2 * channels), outputs * channels
        for row in range(begin, end):
            frame, top = frames[row // rows], row % rows * outputs
            for column in range(columns):
                left, at = column * outputs, ((row - begin) * columns + column) * channels
                to = (frame * height + top) * width + left * step + first
                if top + outputs <= height and (left + outputs) * step <= width:
                    outputs_of(flat_tiles, at, inputs * matrix, matrix, flat, to, width, step, channels, shift)
                    continue
                outputs_of(flat_tiles, at, inputs * matrix, matrix, patch, 0, line, channels, channels, shift)
                for i in range(min(outputs, height - top)):
                    for j in range(min(outputs, width // step - left)):
                        copy(patch, (i * outputs + j) * channels, flat, to + i * width + j * step, channels)

    @compiled(nogil=True)
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
                before = (tiles[(inputs - 1) * inputs + i, first - length : first] if top > 0 else zeros,)
                after = (tiles[i, last : last + length] if top + outputs < height else zeros,)
                values = take(tiles, i, inputs, first, last)
                gradients_of(before + values + after, take_outputs(lines, i, inputs, channels, channels + length))
            for i in range(min(outputs, height - top)):
                before, after = (lines[(i + 1) * inputs - 1, :length],), (lines[i * inputs, 2 * channels :],)
                values = take(lines, i * inputs, 1, channels, channels + length)
                gradients_of(before + values + after, take_outputs(window.reshape(outputs, length), 0, 1, 0, length))
                _collect(window, outputs, channels, image[top + i])

    @compiled(nogil=True)
    def transform_weight(begin, end, filters, transformed):  # type: ignore[no-untyped-def]
        """G weight G^T, `[matrices, in, out]`, for the output channels begin <= channel < end."""
        channels, count = filters.shape[1], filters.shape[0] // 9
        few, flat = room(LINE * matrices * channels), filters.reshape(-1)  # before rows become columns
        for low in range(begin, end, LINE):
            high = min(low + LINE, end)
            for channel in range(low, high):
                weights_of(
                    flat, channel * 9 * channels, 3 * channels, channels,
                    few, (channel - low) * matrices * channels, inputs * channels, channels, channels,
                )  # fmt: skip
            for matrix in range(matrices):
                transpose(
                    few, matrix * channels, matrices * channels,
                    transformed, matrix * channels * count + low, count, channels, high - low,
                )  # fmt: skip

    @compiled(nogil=True)
    def merge_weight_gradient(begin, end, filters, transformed):  # type: ignore[no-untyped-def]
        """G^T products G for the output channels begin <= channel < end."""
        count, channels = filters.shape[0] // 9, filters.shape[1]
        flat, matrix = filters.reshape(-1), count * channels
        for channel in range(begin, end):
            weight_gradients_of(
                transformed.reshape(-1), channel * channels, inputs * matrix, matrix,
                flat, channel * 9 * channels, 3 * channels, channels, channels,
            )  # fmt: skip

    @compiled(nogil=True)
    def convolve(begin, end, images, frames, channels, weight, made, first, step, shift, together):  # type: ignore[no-untyped-def]
        """All of it, from images to the images made, for the rows of tiles begin <= row < end, a few rows together."""
        columns, out_channels = math.ceil(images.shape[2] / (channels * outputs)), shift.size
        tiles = room(matrices * (together * columns * channels + LINE))
        products = room(matrices * (together * columns * out_channels + LINE))
        for low in range(begin, end, together):
            high = min(low + together, end)
            count = (high - low) * columns
            few = tiles[: matrices * (count * channels + LINE)].reshape(matrices, -1)
            few_products = products[: matrices * (count * out_channels + LINE)].reshape(matrices, -1)
            cut_inputs(low, high, images, frames, channels, few, low)
            multiply(0, matrices, few, weight, few_products, count, channels, out_channels)
            merge_outputs(low, high, made, frames, first, step, few_products, shift)

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
            inputs_of=inputs_of_two,
            errors_of=errors_of_two,
            outputs_of=outputs_of_two,
            gradients_of=gradients_of_two,
            weights_of=weights_of_two,
            weight_gradients_of=weight_gradients_of_two,
        ),
        _tiling(
            4,
            four,
            six,
            inputs_of=inputs_of_four,
            errors_of=errors_of_four,
            outputs_of=outputs_of_four,
            gradients_of=gradients_of_four,
            weights_of=weights_of_four,
            weight_gradients_of=weight_gradients_of_four,
        ),
    )
}
