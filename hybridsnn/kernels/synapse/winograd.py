"""3x3 convolutions on a CPU by Winograd's minimal filtering: 2.25 or 4 times fewer multiplications, as matrix products.

A picture is cut into tiles of 2x2 or 4x4 outputs, each of which sees a tile of inputs that is two wider and higher.
For one tile (`*` is elementwise)

    outputs = A^T [(G weight G^T) * (B^T inputs B)] A      (Winograd 1980; Lavin & Gray, CVPR 2016)

and the sum over channels makes of each of the 16 or 36 elements one matrix product. Both gradients are the same formula
read backwards: `A errors A^T` serves the two, and the transformed weight serves the outputs and the inputs' gradient.

The matrices follow from the points at which polynomials are multiplied: 0, 1, -1 and infinity for tiles of 2x2 outputs;
for 4x4 they are 0, +-1/sqrt(2), +-sqrt(2) and infinity, which round four times less than the usual 0, +-1, +-2.
Against double precision, and with 512 channels, results are within 1e-6 of their largest value with the small tiles,
which are exact for small integers, and within 4e-6 with the large ones.
Pictures are `[N, channels, height, width]`, best channels-last; everything is float32 and records no gradients.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from numba.extending import register_jitable
from torch import Tensor

from hybridsnn.kernels.threads import over_ranges

CHANNELS = 64  # with 32 the transforms cost more than the multiplications they save; with 64 the backward pass gains
THREAD = 262144  # values that are worth waking a thread for: it takes a tenth of a millisecond
CHUNK = 9216  # transformed values of a channel at a time: what goes into the matrix products stays in the cache
WEIGHT = 64  # tiles that cost as much as one matrix of the weight: transforming it, and reading it at every step

HALF, SIXTH, TWO_THIRDS = np.float32(1 / 2), np.float32(1 / 6), np.float32(2 / 3)
TWO, FIVE_HALVES = np.float32(2), np.float32(5 / 2)
SMALL, LARGE = np.float32(math.sqrt(1 / 2)), np.float32(math.sqrt(2))  # points, whose product is 1

# Loops over the channels of neighbouring tiles, from and to tuples of lines. To Python they stay plain functions: the
# compiled loops around them are found on disk by these functions' names, and a compiled function has none.
line = register_jitable(fastmath={"contract"})


@line
def _two(lines, first, step, low, high):  # type: ignore[no-untyped-def]
    """Two lines, of the values low <= i < high."""
    return lines[first, low:high], lines[first + step, low:high]


@line
def _three(lines, first, step, low, high):  # type: ignore[no-untyped-def]
    return (lines[first, low:high], *_two(lines, first + step, step, low, high))


@line
def _four(lines, first, step, low, high):  # type: ignore[no-untyped-def]
    return _two(lines, first, step, low, high) + _two(lines, first + 2 * step, step, low, high)


@line
def _six(lines, first, step, low, high):  # type: ignore[no-untyped-def]
    return _four(lines, first, step, low, high) + _two(lines, first + 4 * step, step, low, high)


@line
def _inputs_of_two(inputs, values):  # type: ignore[no-untyped-def]
    """B^T: four inputs to four values."""
    a, b, c, d = inputs
    w, x, y, z = values
    for i in range(w.size):
        w[i] = a[i] - c[i]
        x[i] = b[i] + c[i]
        y[i] = c[i] - b[i]
        z[i] = b[i] - d[i]


@line
def _inputs_of_four(inputs, values):  # type: ignore[no-untyped-def]
    """B^T: six inputs to six values."""
    a, b, c, d, e, f = inputs
    u, v, w, x, y, z = values
    for i in range(u.size):
        even, odd = e[i] - TWO * c[i], SMALL * d[i] - LARGE * b[i]
        even_too, odd_too = e[i] - HALF * c[i], LARGE * d[i] - SMALL * b[i]
        u[i] = a[i] - FIVE_HALVES * c[i] + e[i]
        v[i] = even + odd
        w[i] = even - odd
        x[i] = even_too + odd_too
        y[i] = even_too - odd_too
        z[i] = b[i] - FIVE_HALVES * d[i] + f[i]


@line
def _outputs_of_two(values, outputs):  # type: ignore[no-untyped-def]
    """A^T: four values to two outputs."""
    w, x, y, z = values
    a, b = outputs
    for i in range(a.size):
        a[i] = w[i] + x[i] + y[i]
        b[i] = x[i] - y[i] - z[i]


@line
def _outputs_of_four(values, outputs):  # type: ignore[no-untyped-def]
    """A^T: six values to four outputs."""
    u, v, w, x, y, z = values
    a, b, c, d = outputs
    for i in range(a.size):
        even, odd = v[i] + w[i], SMALL * (v[i] - w[i])
        even_too, odd_too = x[i] + y[i], LARGE * (x[i] - y[i])
        a[i] = u[i] + even + even_too
        b[i] = odd + odd_too
        c[i] = HALF * even + TWO * even_too
        d[i] = HALF * odd + TWO * odd_too + z[i]


@line
def _errors_of_two(errors, values):  # type: ignore[no-untyped-def]
    """A: the gradients of two outputs to four values."""
    a, b = errors
    w, x, y, z = values
    for i in range(w.size):
        w[i] = a[i]
        x[i] = a[i] + b[i]
        y[i] = a[i] - b[i]
        z[i] = -b[i]


@line
def _errors_of_four(errors, values):  # type: ignore[no-untyped-def]
    """A: the gradients of four outputs to six values."""
    a, b, c, d = errors
    u, v, w, x, y, z = values
    for i in range(u.size):
        even, odd = a[i] + HALF * c[i], SMALL * (b[i] + HALF * d[i])
        even_too, odd_too = a[i] + TWO * c[i], LARGE * (b[i] + TWO * d[i])
        u[i] = a[i]
        v[i] = even + odd
        w[i] = even - odd
        x[i] = even_too + odd_too
        y[i] = even_too - odd_too
        z[i] = d[i]


@line
def _gradients_of_two(before, values, after, gradients):  # type: ignore[no-untyped-def]
    """B: four values, the last of the tile before and the first of the tile after to the gradients of two inputs."""
    w, x, y, z = values
    a, b = gradients
    for i in range(a.size):
        a[i] = x[i] - y[i] + z[i] - before[i]
        b[i] = x[i] + y[i] - w[i] + after[i]


@line
def _gradients_of_four(before, values, after, gradients):  # type: ignore[no-untyped-def]
    """B: six values, the last of the tile before and the first of the tile after to the gradients of four inputs."""
    u, v, w, x, y, z = values
    a, b, c, d = gradients
    for i in range(a.size):
        even, odd = v[i] + w[i], v[i] - w[i]
        even_too, odd_too = x[i] + y[i], x[i] - y[i]
        a[i] = z[i] - LARGE * odd - SMALL * odd_too + before[i]
        b[i] = -FIVE_HALVES * u[i] - TWO * even - HALF * even_too
        c[i] = SMALL * odd + LARGE * odd_too - FIVE_HALVES * z[i]
        d[i] = u[i] + even + even_too + after[i]


@line
def _weights_of_two(weights, values):  # type: ignore[no-untyped-def]
    """G: three weights to four values."""
    a, b, c = weights
    w, x, y, z = values
    for i in range(w.size):
        w[i] = a[i]
        x[i] = HALF * (a[i] + b[i] + c[i])
        y[i] = HALF * (a[i] - b[i] + c[i])
        z[i] = c[i]


@line
def _weights_of_four(weights, values):  # type: ignore[no-untyped-def]
    """G: three weights to six values."""
    a, b, c = weights
    u, v, w, x, y, z = values
    for i in range(u.size):
        even, odd = -TWO_THIRDS * (a[i] + HALF * c[i]), -TWO_THIRDS * (SMALL * b[i])
        even_too, odd_too = SIXTH * (a[i] + TWO * c[i]), SIXTH * (LARGE * b[i])
        u[i] = a[i]
        v[i] = even + odd
        w[i] = even - odd
        x[i] = even_too + odd_too
        y[i] = even_too - odd_too
        z[i] = c[i]


@line
def _weight_gradients_of_two(values, gradients):  # type: ignore[no-untyped-def]
    """G^T: four values to the gradients of three weights."""
    w, x, y, z = values
    a, b, c = gradients
    for i in range(a.size):
        a[i] = w[i] + HALF * (x[i] + y[i])
        b[i] = HALF * (x[i] - y[i])
        c[i] = z[i] + HALF * (x[i] + y[i])


@line
def _weight_gradients_of_four(values, gradients):  # type: ignore[no-untyped-def]
    """G^T: six values to the gradients of three weights."""
    u, v, w, x, y, z = values
    a, b, c = gradients
    for i in range(a.size):
        even, odd = -TWO_THIRDS * (v[i] + w[i]), -TWO_THIRDS * (v[i] - w[i])
        even_too, odd_too = SIXTH * (x[i] + y[i]), SIXTH * (x[i] - y[i])
        a[i] = u[i] + even + even_too
        b[i] = SMALL * odd + LARGE * odd_too
        c[i] = HALF * even + TWO * even_too + z[i]


@line
def _deal(picture_line, channels, margin, places, dealt):  # type: ignore[no-untyped-def]
    """Columns of a picture apart: those of the same place in their tiles together, so that all tiles make long lines.

    There are `margin` columns before the first one, and `places` columns to a tile.
    """
    length = dealt.size // places
    for column in range(picture_line.size // channels):
        source = picture_line[column * channels : (column + 1) * channels]
        start = (column + margin) % places * length + (column + margin) // places * channels
        target = dealt[start : start + channels]
        for i in range(channels):
            target[i] = source[i]


@line
def _collect(dealt, places, shift, picture_line):  # type: ignore[no-untyped-def]
    """The inverse of `_deal` without a margin, plus the shift of each channel."""
    channels, length = shift.size, dealt.size // places
    for column in range(picture_line.size // channels):
        start = column % places * length + column // places * channels
        source = dealt[start : start + channels]
        target = picture_line[column * channels : (column + 1) * channels]
        for i in range(channels):
            target[i] = source[i] + shift[i]


@dataclass(frozen=True)
class Tiling:
    """Tiles of some size, with compiled loops that transform them."""

    outputs: int  # that a tile is wide and high
    transform_inputs: Callable[..., None]
    transform_errors: Callable[..., None]
    merge_outputs: Callable[..., None]
    merge_input_gradient: Callable[..., None]
    transform_weight: Callable[..., None]
    merge_weight_gradient: Callable[..., None]

    @property
    def matrices(self) -> int:
        """How many values a tile is transformed to."""
        return (self.outputs + 2) ** 2

    def rows(self, height: int) -> int:
        """How many tiles cover a height or width."""
        return math.ceil(height / self.outputs)

    def tiles(self, height: int, width: int) -> int:
        """How many tiles cover a picture."""
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

    @numba.njit(cache=True, nogil=True)
    def transform_inputs(begin, end, pictures, channels, tiles):  # type: ignore[no-untyped-def]
        """B^T inputs B for the rows of tiles begin <= row < end, those of all pictures counted together."""
        _, height, width = pictures.shape
        rows, columns = math.ceil(height / outputs), math.ceil(width / (channels * outputs))
        length = columns * channels
        span = outputs * (length + channels)
        # The first column and what comes after the last ones lie outside the picture.
        window, values = np.zeros((inputs, span), pictures.dtype), np.empty((inputs, span), pictures.dtype)
        lines = values.reshape(inputs * outputs, length + channels)
        for row in range(begin, end):
            picture, top = pictures[row // rows], row % rows * outputs - 1
            for i in range(inputs):
                if 0 <= top + i < height:
                    _deal(picture[top + i], channels, 1, outputs, window[i])
                else:
                    window[i] = 0
            line_of_inputs(take(window, 0, 1, 0, span), take(values, 0, 1, 0, span))
            for i in range(inputs):
                line_of_inputs(
                    take_outputs(lines, i * outputs, 1, 0, length)
                    + _two(lines, i * outputs, 1, channels, length + channels),
                    take(tiles, i * inputs, 1, row * length, (row + 1) * length),
                )

    @numba.njit(cache=True, nogil=True)
    def transform_errors(begin, end, pictures, channels, tiles):  # type: ignore[no-untyped-def]
        """A errors A^T for the rows of tiles begin <= row < end."""
        _, height, width = pictures.shape
        rows, columns = math.ceil(height / outputs), math.ceil(width / (channels * outputs))
        length = columns * channels
        span = outputs * length
        window, values = np.zeros((outputs, span), pictures.dtype), np.empty((inputs, span), pictures.dtype)
        lines = values.reshape(inputs * outputs, length)
        for row in range(begin, end):
            picture, top = pictures[row // rows], row % rows * outputs
            for i in range(outputs):
                if top + i < height:
                    _deal(picture[top + i], channels, 0, outputs, window[i])
                else:
                    window[i] = 0
            line_of_errors(take_outputs(window, 0, 1, 0, span), take(values, 0, 1, 0, span))
            for i in range(inputs):
                line_of_errors(
                    take_outputs(lines, i * outputs, 1, 0, length),
                    take(tiles, i * inputs, 1, row * length, (row + 1) * length),
                )

    @numba.njit(cache=True, nogil=True)
    def merge_outputs(begin, end, pictures, channels, tiles, shift):  # type: ignore[no-untyped-def]
        """A^T products A, plus the shift of every channel, for the rows of tiles begin <= row < end."""
        _, height, width = pictures.shape
        rows, columns = math.ceil(height / outputs), math.ceil(width / (channels * outputs))
        length = columns * channels
        span = outputs * length
        window, values = np.empty((outputs, span), pictures.dtype), np.empty((inputs, span), pictures.dtype)
        lines = values.reshape(inputs * outputs, length)
        for row in range(begin, end):
            picture, top = pictures[row // rows], row % rows * outputs
            for i in range(inputs):
                line_of_outputs(
                    take(tiles, i * inputs, 1, row * length, (row + 1) * length),
                    take_outputs(lines, i * outputs, 1, 0, length),
                )
            line_of_outputs(take(values, 0, 1, 0, span), take_outputs(window, 0, 1, 0, span))
            for i in range(min(outputs, height - top)):
                _collect(window[i], outputs, shift, picture[top + i])

    @numba.njit(cache=True, nogil=True)
    def merge_input_gradient(begin, end, pictures, channels, tiles):  # type: ignore[no-untyped-def]
        """B products B^T, summed where tiles overlap, for the rows of tiles begin <= row < end."""
        _, height, width = pictures.shape
        rows, columns = math.ceil(height / outputs), math.ceil(width / (channels * outputs))
        length = columns * channels
        zeros = np.zeros(length, pictures.dtype)
        lines = np.zeros((outputs * inputs, length + 2 * channels), pictures.dtype)  # a tile of zeros on either side
        window = np.empty(outputs * length, pictures.dtype)
        for row in range(begin, end):
            picture, top = pictures[row // rows], row % rows * outputs
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
                _collect(window, outputs, zeros[:channels], picture[top + i])

    @numba.njit(cache=True, nogil=True)
    def transform_weight(begin, end, filters, transformed):  # type: ignore[no-untyped-def]
        """G weight G^T for the output channels begin <= channel < end."""
        count, channels = filters.shape[0] // 9, filters.shape[1]
        lines = np.empty((inputs * 3, channels), filters.dtype)
        for channel in range(begin, end):
            for i in range(3):
                line_of_weights(_three(filters, channel * 9 + i, 3, 0, channels), take(lines, i, 3, 0, channels))
            for i in range(inputs):
                line_of_weights(
                    _three(lines, i * 3, 1, 0, channels),
                    take(transformed, i * inputs * count + channel, count, 0, channels),
                )

    @numba.njit(cache=True, nogil=True)
    def merge_weight_gradient(begin, end, filters, transformed):  # type: ignore[no-untyped-def]
        """G^T products G for the output channels begin <= channel < end."""
        count, channels = filters.shape[0] // 9, filters.shape[1]
        lines = np.empty((inputs * 3, channels), filters.dtype)
        for channel in range(begin, end):
            for i in range(inputs):
                line_of_weight_gradients(
                    take(transformed, i * inputs * count + channel, count, 0, channels),
                    _three(lines, i * 3, 1, 0, channels),
                )
            for i in range(3):
                line_of_weight_gradients(
                    take(lines, i, 3, 0, channels), _three(filters, channel * 9 + i, 3, 0, channels)
                )

    return Tiling(
        outputs, transform_inputs, transform_errors, merge_outputs, merge_input_gradient,
        transform_weight, merge_weight_gradient,
    )  # fmt: skip


# By the number of matrices, which the first size of a transformed weight shows.
TILINGS = {
    tiling.matrices: tiling
    for tiling in (
        _tiling(
            2,
            _two,
            _four,
            line_of_inputs=_inputs_of_two,
            line_of_errors=_errors_of_two,
            line_of_outputs=_outputs_of_two,
            line_of_gradients=_gradients_of_two,
            line_of_weights=_weights_of_two,
            line_of_weight_gradients=_weight_gradients_of_two,
        ),
        _tiling(
            4,
            _four,
            _six,
            line_of_inputs=_inputs_of_four,
            line_of_errors=_errors_of_four,
            line_of_outputs=_outputs_of_four,
            line_of_gradients=_gradients_of_four,
            line_of_weights=_weights_of_four,
            line_of_weight_gradients=_weight_gradients_of_four,
        ),
    )
}


def supports(
    inputs: Tensor,
    weight: Tensor,
    stride: tuple[int, ...] = (1, 1),
    padding: tuple[int, ...] = (1, 1),
    dilation: tuple[int, ...] = (1, 1),
    groups: int = 1,
) -> bool:
    """Whether these functions can take the place of this convolution, and are faster."""
    return (
        inputs.device.type == weight.device.type == "cpu"
        and inputs.dtype == weight.dtype == torch.float32
        and inputs.dim() == weight.dim() == 4
        and weight.shape[2:] == (3, 3)
        and tuple(stride) == tuple(padding) == tuple(dilation) == (1, 1)
        and groups == 1
        and min(weight.shape[:2]) >= CHANNELS
        and inputs.numel() > 0
    )


def tiling_for(pictures: Tensor) -> Tiling:
    """The faster tiling for pictures `[N, channels, H, W]`: the one with less work, products and reading the weight."""
    batch, _, height, width = pictures.shape
    return min(TILINGS.values(), key=lambda each: each.matrices * (batch * each.tiles(height, width) + WEIGHT))


def transform_weight(weight: Tensor, tiling: Tiling) -> Tensor:
    """The weight `[out, in, 3, 3]` as matrices `[16 or 36, out, in]`, for `forward` and for the gradients of inputs."""
    filters = _channels_last(weight)
    transformed = filters.new_empty(tiling.matrices, weight.shape[0], weight.shape[1])
    _over_filters(tiling.transform_weight, filters, transformed)
    return transformed


def forward(inputs: Tensor, transformed_weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve `[N, in, H, W]` to `[N, out, H, W]` (channels-last), with zeros around the picture."""
    tiling = TILINGS[transformed_weight.shape[0]]
    outputs = transformed_weight.new_empty(inputs.shape[0], *inputs.shape[2:], transformed_weight.shape[1])
    shift = outputs.new_zeros(outputs.shape[3]) if bias is None else bias.detach()
    for few_inputs, few_outputs in _chunks(tiling, _channels_last(inputs), outputs):
        tiles = _tiles(tiling, tiling.transform_inputs, few_inputs)
        products = torch.bmm(tiles, transformed_weight.transpose(1, 2))
        _over_rows(tiling, tiling.merge_outputs, few_outputs, products, shift)
    return outputs.permute(0, 3, 1, 2)


def input_gradient(errors: Tensor, transformed_weight: Tensor) -> Tensor:
    """The gradient `[N, in, H, W]` (channels-last) of the inputs, from that of the outputs `[N, out, H, W]`."""
    tiling = TILINGS[transformed_weight.shape[0]]
    gradient = transformed_weight.new_empty(errors.shape[0], *errors.shape[2:], transformed_weight.shape[2])
    for few_errors, few_gradients in _chunks(tiling, _channels_last(errors), gradient):
        products = torch.bmm(_tiles(tiling, tiling.transform_errors, few_errors), transformed_weight)
        _over_rows(tiling, tiling.merge_input_gradient, few_gradients, products)
    return gradient.permute(0, 3, 1, 2)


class WeightGradient:
    """The gradient of a weight `[out, in, 3, 3]`: a sum over time steps of 16 or 36 matrices, transformed once."""

    def __init__(self, weight: Tensor, tiling: Tiling):
        last = weight.is_contiguous(memory_format=torch.channels_last)
        self._format = torch.channels_last if last else torch.contiguous_format
        self._weight = weight.detach()
        self._tiling = tiling
        self._sum: Tensor | None = None

    def add(self, inputs: Tensor, errors: Tensor) -> None:
        """Add one time step: its inputs `[N, in, H, W]` and the gradient of its outputs `[N, out, H, W]`."""
        for few_inputs, few_errors in _chunks(self._tiling, _channels_last(inputs), _channels_last(errors)):
            self._add(few_inputs, _tiles(self._tiling, self._tiling.transform_errors, few_errors))

    def add_and_pass(self, inputs: Tensor, errors: Tensor, transformed_weight: Tensor) -> Tensor:
        """`add` and `input_gradient` in one, which transforms the errors once; the weight has the same tiling."""
        tiling = self._tiling
        gradient = transformed_weight.new_empty(errors.shape[0], *errors.shape[2:], transformed_weight.shape[2])
        few = _chunks(tiling, _channels_last(inputs), _channels_last(errors), gradient)
        for few_inputs, few_errors, few_gradients in few:
            tiles = _tiles(tiling, tiling.transform_errors, few_errors)
            self._add(few_inputs, tiles)
            products = torch.bmm(tiles, transformed_weight)
            _over_rows(tiling, tiling.merge_input_gradient, few_gradients, products)
        return gradient.permute(0, 3, 1, 2)

    def result(self) -> Tensor:
        """The sum so far `[out, in, 3, 3]`, in the memory format of the weight."""
        if self._sum is None:
            return torch.zeros_like(self._weight)
        gradient = self._sum.new_empty(self._sum.shape[1], 3, 3, self._sum.shape[2])
        _over_filters(self._tiling.merge_weight_gradient, gradient, self._sum)
        return gradient.permute(0, 3, 1, 2).contiguous(memory_format=self._format)

    def _add(self, pictures: Tensor, error_tiles: Tensor) -> None:
        factors = error_tiles.transpose(1, 2), _tiles(self._tiling, self._tiling.transform_inputs, pictures)
        self._sum = torch.bmm(*factors) if self._sum is None else self._sum.baddbmm_(*factors)


def _channels_last(values: Tensor) -> Tensor:
    """`[N, C, H, W]` as a contiguous `[N, H, W, C]`: a view where it lies in memory like that."""
    return values.detach().permute(0, 2, 3, 1).contiguous()


def _chunks(tiling: Tiling, *pictures: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Several `[N, H, W, C]`, the same few pictures of each at a time."""
    batch, height, width, _ = pictures[0].shape
    parts = min(batch, math.ceil(batch * tiling.tiles(height, width) * tiling.matrices / CHUNK))
    return zip(*(each.tensor_split(parts) for each in pictures), strict=True)


def _tiles(tiling: Tiling, transform: Callable[..., None], pictures: Tensor) -> Tensor:
    """The pictures `[N, H, W, C]` cut in tiles and transformed, `[matrices, tiles, C]`."""
    batch, height, width, channels = pictures.shape
    tiles = pictures.new_empty(tiling.matrices, batch * tiling.tiles(height, width), channels)
    _over_rows(tiling, transform, pictures, tiles)
    return tiles


def _over_rows(tiling: Tiling, loop: Callable[..., None], pictures: Tensor, tiles: Tensor, *more: Tensor) -> None:
    """Run a loop over the rows of tiles of the pictures `[N, H, W, C]`."""
    batch, height, width, channels = pictures.shape
    over_ranges(
        loop, batch * tiling.rows(height), math.ceil(THREAD / (tiling.outputs * width * channels)),
        pictures.flatten(2).numpy(), channels, tiles.flatten(1).numpy(), *(each.numpy() for each in more),
    )  # fmt: skip


def _over_filters(loop: Callable[..., None], filters: Tensor, matrices: Tensor) -> None:
    """Run a loop over the output channels of a weight `[out, 3, 3, in]` and its matrices `[matrices, out, in]`."""
    over_ranges(
        loop, filters.shape[0], math.ceil(THREAD / (9 * filters.shape[3])),
        filters.flatten(0, 2).numpy(), matrices.flatten(0, 1).numpy(),
    )  # fmt: skip
