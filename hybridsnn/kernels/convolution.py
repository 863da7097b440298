"""3x3 convolutions on a CPU by Winograd's minimal filtering: 2.25 times fewer multiplications, as matrix products.

A picture is cut into tiles of 2x2 outputs, each of which sees a tile of 4x4 inputs. For one tile (`*` is elementwise)

    outputs = A^T [(G weight G^T) * (B^T inputs B)] A      (Winograd 1980; Lavin & Gray, CVPR 2016)

and the sum over channels makes of each of the 16 elements one matrix product. Both gradients are the same formula
read backwards: `A errors A^T` serves the two, and the transformed weight serves the outputs and the inputs' gradient.

Against double precision, results are within 1e-6 of their largest value with 512 channels; small integers are exact.
Pictures are `[N, channels, height, width]`, best channels-last; everything is float32 and records no gradients.
"""

import math
from collections.abc import Callable

import numba
import numpy as np
import torch
from torch import Tensor

from hybridsnn.kernels.threads import over_ranges

CHANNELS = 64  # with 32 the transforms cost more than the multiplications they save; with 64 the backward pass gains
THREAD = 65536  # values that are worth waking a thread for, while those of PyTorch still spin after their last work
CHUNK = 512  # tiles at a time, so that what goes into the matrix products and what comes out stay in the cache
HALF = np.float32(0.5)


@numba.njit(cache=True, nogil=True)
def _line_of_inputs(a, b, c, d, w, x, y, z):  # type: ignore[no-untyped-def]
    """B^T: four inputs to four values."""
    for i in range(w.size):
        w[i] = a[i] - c[i]
        x[i] = b[i] + c[i]
        y[i] = c[i] - b[i]
        z[i] = b[i] - d[i]


@numba.njit(cache=True, nogil=True)
def _line_of_outputs(w, x, y, z, a, b):  # type: ignore[no-untyped-def]
    """A^T: four values to two outputs."""
    for i in range(a.size):
        a[i] = w[i] + x[i] + y[i]
        b[i] = x[i] - y[i] - z[i]


@numba.njit(cache=True, nogil=True)
def _line_of_errors(a, b, w, x, y, z):  # type: ignore[no-untyped-def]
    """A: the gradients of two outputs to four values."""
    for i in range(w.size):
        w[i] = a[i]
        x[i] = a[i] + b[i]
        y[i] = a[i] - b[i]
        z[i] = -b[i]


@numba.njit(cache=True, nogil=True)
def _line_of_gradients(before, w, x, y, z, after, a, b):  # type: ignore[no-untyped-def]
    """B: four values, the last of the tile before and the first of the tile after to the gradients of two inputs."""
    for i in range(a.size):
        a[i] = x[i] - y[i] + z[i] - before[i]
        b[i] = x[i] + y[i] - w[i] + after[i]


@numba.njit(cache=True, nogil=True)
def _line_of_weights(a, b, c, w, x, y, z):  # type: ignore[no-untyped-def]
    """G: three weights to four values."""
    for i in range(w.size):
        w[i] = a[i]
        x[i] = HALF * (a[i] + b[i] + c[i])
        y[i] = HALF * (a[i] - b[i] + c[i])
        z[i] = c[i]


@numba.njit(cache=True, nogil=True)
def _line_of_weight_gradients(w, x, y, z, a, b, c):  # type: ignore[no-untyped-def]
    """G^T: four values to the gradients of three weights."""
    for i in range(a.size):
        a[i] = w[i] + HALF * (x[i] + y[i])
        b[i] = HALF * (x[i] - y[i])
        c[i] = z[i] + HALF * (x[i] + y[i])


@numba.njit(cache=True, nogil=True)
def _transform_inputs(begin, end, pictures, channels, tiles):  # type: ignore[no-untyped-def]
    """B^T inputs B for the rows of tiles begin <= row < end, those of all pictures counted together."""
    _, height, width = pictures.shape
    rows, columns = (height + 1) // 2, (width // channels + 1) // 2
    length = columns * channels
    zeros = np.zeros(width, pictures.dtype)
    # Columns apart by parity, so that the four columns of all tiles of a row are four lines. The first and the last
    # column, and one more in odd widths, lie outside the picture.
    even, odd = np.zeros((4, length + channels), pictures.dtype), np.zeros((4, length + channels), pictures.dtype)
    for row in range(begin, end):
        picture, top = pictures[row // rows], 2 * (row % rows)
        a = picture[top - 1] if top > 0 else zeros
        b = picture[top]
        c = picture[top + 1] if top + 1 < height else zeros
        d = picture[top + 2] if top + 2 < height else zeros
        for low in range(0, width, channels):
            high, place = low + channels, (low // channels + 1) // 2 * channels
            lines = odd if low // channels % 2 == 0 else even
            _line_of_inputs(
                a[low:high], b[low:high], c[low:high], d[low:high],
                lines[0, place : place + channels], lines[1, place : place + channels],
                lines[2, place : place + channels], lines[3, place : place + channels],
            )  # fmt: skip
        first = row * length
        last = first + length
        for i in range(0, 16, 4):
            _line_of_inputs(
                even[i // 4, :length], odd[i // 4, :length], even[i // 4, channels:], odd[i // 4, channels:],
                tiles[i, first:last], tiles[i + 1, first:last], tiles[i + 2, first:last], tiles[i + 3, first:last],
            )  # fmt: skip


@numba.njit(cache=True, nogil=True)
def _transform_errors(begin, end, pictures, channels, tiles):  # type: ignore[no-untyped-def]
    """A errors A^T for the rows of tiles begin <= row < end."""
    _, height, width = pictures.shape
    rows, columns = (height + 1) // 2, (width // channels + 1) // 2
    length = columns * channels
    zeros = np.zeros(channels, pictures.dtype)
    lines = np.empty((2, 4, length), pictures.dtype)
    for row in range(begin, end):
        picture, top = pictures[row // rows], 2 * (row % rows)
        for i in range(2):
            if top + i == height:
                lines[i] = 0
                continue
            for low in range(0, length, channels):
                high, left = low + channels, 2 * low
                middle = left + channels
                _line_of_errors(
                    picture[top + i, left:middle],
                    picture[top + i, middle : middle + channels] if middle < width else zeros,
                    lines[i, 0, low:high], lines[i, 1, low:high], lines[i, 2, low:high], lines[i, 3, low:high],
                )  # fmt: skip
        first = row * length
        last = first + length
        for j in range(4):
            _line_of_errors(
                lines[0, j], lines[1, j],
                tiles[j, first:last], tiles[4 + j, first:last], tiles[8 + j, first:last], tiles[12 + j, first:last],
            )  # fmt: skip


@numba.njit(cache=True, nogil=True)
def _merge_outputs(begin, end, pictures, channels, tiles, shift):  # type: ignore[no-untyped-def]
    """A^T products A, plus the shift of every place of a row, for the rows of tiles begin <= row < end."""
    _, height, width = pictures.shape
    rows, columns = (height + 1) // 2, (width // channels + 1) // 2
    length = columns * channels
    waste = np.empty(channels, pictures.dtype)
    lines = np.empty((2, 4, length), pictures.dtype)
    for row in range(begin, end):
        picture, top = pictures[row // rows], 2 * (row % rows)
        first = row * length
        last = first + length
        for j in range(4):
            _line_of_outputs(
                tiles[j, first:last], tiles[4 + j, first:last], tiles[8 + j, first:last], tiles[12 + j, first:last],
                lines[0, j], lines[1, j],
            )  # fmt: skip
        for i in range(min(2, height - top)):
            for low in range(0, length, channels):
                high, left = low + channels, 2 * low
                middle = left + channels
                _line_of_outputs(
                    lines[i, 0, low:high], lines[i, 1, low:high], lines[i, 2, low:high], lines[i, 3, low:high],
                    picture[top + i, left:middle],
                    picture[top + i, middle : middle + channels] if middle < width else waste,
                )  # fmt: skip
            if shift.size > 0:
                picture[top + i] += shift


@numba.njit(cache=True, nogil=True)
def _merge_input_gradient(begin, end, pictures, channels, tiles):  # type: ignore[no-untyped-def]
    """B products B^T, summed where tiles overlap, for the rows of tiles begin <= row < end."""
    _, height, width = pictures.shape
    rows, columns = (height + 1) // 2, (width // channels + 1) // 2
    length = columns * channels
    zeros = np.zeros(length, pictures.dtype)
    waste = np.empty(channels, pictures.dtype)
    lines = np.zeros((2, 4, length + 2 * channels), pictures.dtype)  # with a tile of zeros on either side
    for row in range(begin, end):
        picture, top = pictures[row // rows], 2 * (row % rows)
        first = row * length
        last = first + length
        for j in range(4):
            _line_of_gradients(
                tiles[12 + j, first - length : first] if top > 0 else zeros,
                tiles[j, first:last], tiles[4 + j, first:last], tiles[8 + j, first:last], tiles[12 + j, first:last],
                tiles[j, last : last + length] if top + 2 < height else zeros,
                lines[0, j, channels:-channels], lines[1, j, channels:-channels],
            )  # fmt: skip
        for i in range(min(2, height - top)):
            for low in range(channels, channels + length, channels):
                high, left = low + channels, 2 * (low - channels)
                middle = left + channels
                _line_of_gradients(
                    lines[i, 3, low - channels : low],
                    lines[i, 0, low:high], lines[i, 1, low:high], lines[i, 2, low:high], lines[i, 3, low:high],
                    lines[i, 0, high : high + channels],
                    picture[top + i, left:middle],
                    picture[top + i, middle : middle + channels] if middle < width else waste,
                )  # fmt: skip


@numba.njit(cache=True, nogil=True)
def _transform_weight(begin, end, filters, transformed):  # type: ignore[no-untyped-def]
    """G weight G^T for the output channels begin <= channel < end."""
    lines = np.empty((4, 3, filters.shape[3]), filters.dtype)
    for channel in range(begin, end):
        for j in range(3):
            _line_of_weights(
                filters[channel, 0, j], filters[channel, 1, j], filters[channel, 2, j],
                lines[0, j], lines[1, j], lines[2, j], lines[3, j],
            )  # fmt: skip
        for i in range(4):
            _line_of_weights(
                lines[i, 0], lines[i, 1], lines[i, 2],
                transformed[4 * i, channel], transformed[4 * i + 1, channel],
                transformed[4 * i + 2, channel], transformed[4 * i + 3, channel],
            )  # fmt: skip


@numba.njit(cache=True, nogil=True)
def _merge_weight_gradient(begin, end, filters, transformed):  # type: ignore[no-untyped-def]
    """G^T products G for the output channels begin <= channel < end."""
    lines = np.empty((4, 3, filters.shape[3]), filters.dtype)
    for channel in range(begin, end):
        for i in range(4):
            _line_of_weight_gradients(
                transformed[4 * i, channel], transformed[4 * i + 1, channel],
                transformed[4 * i + 2, channel], transformed[4 * i + 3, channel],
                lines[i, 0], lines[i, 1], lines[i, 2],
            )  # fmt: skip
        for j in range(3):
            _line_of_weight_gradients(
                lines[0, j], lines[1, j], lines[2, j], lines[3, j],
                filters[channel, 0, j], filters[channel, 1, j], filters[channel, 2, j],
            )  # fmt: skip


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


def transform_weight(weight: Tensor) -> Tensor:
    """The weight `[out, in, 3, 3]` as 16 matrices `[16, out, in]`, for `forward` and for the gradients of inputs."""
    filters = _channels_last(weight)
    transformed = filters.new_empty(16, weight.shape[0], weight.shape[1])
    _over_filters(_transform_weight, filters, transformed)
    return transformed


def forward(inputs: Tensor, transformed_weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve `[N, in, H, W]` to `[N, out, H, W]` (channels-last), with zeros around the picture."""
    outputs = transformed_weight.new_empty(inputs.shape[0], *inputs.shape[2:], transformed_weight.shape[1])
    shift = outputs.new_empty(0) if bias is None else bias.detach().repeat(inputs.shape[3])
    for few_inputs, few_outputs in zip(_chunks(_channels_last(inputs)), _chunks(outputs), strict=True):
        products = torch.bmm(_tiles(_transform_inputs, few_inputs), transformed_weight.transpose(1, 2))
        _over_rows(_merge_outputs, few_outputs, products, shift)
    return outputs.permute(0, 3, 1, 2)


def input_gradient(errors: Tensor, transformed_weight: Tensor) -> Tensor:
    """The gradient `[N, in, H, W]` (channels-last) of the inputs, from that of the outputs `[N, out, H, W]`."""
    gradient = transformed_weight.new_empty(errors.shape[0], *errors.shape[2:], transformed_weight.shape[2])
    for few_errors, few_gradients in zip(_chunks(_channels_last(errors)), _chunks(gradient), strict=True):
        products = torch.bmm(_tiles(_transform_errors, few_errors), transformed_weight)
        _over_rows(_merge_input_gradient, few_gradients, products)
    return gradient.permute(0, 3, 1, 2)


class WeightGradient:
    """The gradient of a weight `[out, in, 3, 3]`: a sum over time steps of 16 matrices, transformed once."""

    def __init__(self, weight: Tensor):
        last = weight.is_contiguous(memory_format=torch.channels_last)
        self._format = torch.channels_last if last else torch.contiguous_format
        self._weight = weight.detach()
        self._sum: Tensor | None = None

    def add(self, inputs: Tensor, errors: Tensor) -> None:
        """Add one time step: its inputs `[N, in, H, W]` and the gradient of its outputs `[N, out, H, W]`."""
        for few_inputs, few_errors in zip(*(_chunks(_channels_last(each)) for each in (inputs, errors)), strict=True):
            self._add(few_inputs, _tiles(_transform_errors, few_errors))

    def add_and_pass(self, inputs: Tensor, errors: Tensor, transformed_weight: Tensor) -> Tensor:
        """`add` and `input_gradient` in one, which transforms the errors once."""
        gradient = transformed_weight.new_empty(errors.shape[0], *errors.shape[2:], transformed_weight.shape[2])
        few = (_chunks(each) for each in (_channels_last(inputs), _channels_last(errors), gradient))
        for few_inputs, few_errors, few_gradients in zip(*few, strict=True):
            tiles = _tiles(_transform_errors, few_errors)
            self._add(few_inputs, tiles)
            _over_rows(_merge_input_gradient, few_gradients, torch.bmm(tiles, transformed_weight))
        return gradient.permute(0, 3, 1, 2)

    def result(self) -> Tensor:
        """The sum so far `[out, in, 3, 3]`, in the memory format of the weight."""
        if self._sum is None:
            return torch.zeros_like(self._weight)
        gradient = self._sum.new_empty(self._sum.shape[1], 3, 3, self._sum.shape[2])
        _over_filters(_merge_weight_gradient, gradient, self._sum)
        return gradient.permute(0, 3, 1, 2).contiguous(memory_format=self._format)

    def _add(self, pictures: Tensor, error_tiles: Tensor) -> None:
        factors = error_tiles.transpose(1, 2), _tiles(_transform_inputs, pictures)
        self._sum = torch.bmm(*factors) if self._sum is None else self._sum.baddbmm_(*factors)


def _channels_last(values: Tensor) -> Tensor:
    """`[N, C, H, W]` as a contiguous `[N, H, W, C]`: a view where it lies in memory like that."""
    return values.detach().permute(0, 2, 3, 1).contiguous()


def _tiles_of_one(pictures: Tensor) -> int:
    """How many tiles a picture of `[N, H, W, C]` has."""
    return math.ceil(pictures.shape[1] / 2) * math.ceil(pictures.shape[2] / 2)


def _chunks(pictures: Tensor) -> tuple[Tensor, ...]:
    """The pictures `[N, H, W, C]` a few at a time."""
    return pictures.split(max(1, CHUNK // _tiles_of_one(pictures)))


def _tiles(transform: Callable[..., None], pictures: Tensor) -> Tensor:
    """The pictures `[N, H, W, C]` cut in tiles and transformed, `[16, tiles, C]`."""
    tiles = pictures.new_empty(16, pictures.shape[0] * _tiles_of_one(pictures), pictures.shape[3])
    _over_rows(transform, pictures, tiles)
    return tiles


def _over_rows(loop: Callable[..., None], pictures: Tensor, tiles: Tensor, *more: Tensor) -> None:
    """Run a loop over the rows of tiles of the pictures `[N, H, W, C]`."""
    batch, height, width, channels = pictures.shape
    over_ranges(
        loop, batch * math.ceil(height / 2), math.ceil(THREAD / (width * channels)),
        pictures.flatten(2).numpy(), channels, tiles.flatten(1).numpy(), *(each.numpy() for each in more),
    )  # fmt: skip


def _over_filters(loop: Callable[..., None], filters: Tensor, matrices: Tensor) -> None:
    """Run a loop over the output channels of a weight `[out, 3, 3, in]` and its 16 matrices."""
    over_ranges(
        loop, filters.shape[0], math.ceil(THREAD / (9 * filters.shape[3])), filters.numpy(), matrices.numpy()
    )  # fmt: skip
