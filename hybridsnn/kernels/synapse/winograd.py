"""3x3 convolutions on a CPU by Winograd's minimal filtering: 2.25 or 4 times fewer multiplications, as matrix products.

An image is cut into tiles of 2x2 or 4x4 outputs, each of which sees a tile of inputs that is two wider and higher.
For one tile (`*` is elementwise)

    outputs = A^T [(G weight G^T) * (B^T inputs B)] A      (Winograd 1980; Lavin & Gray, CVPR 2016)

and the sum over channels makes of each of the 16 or 36 elements one matrix product. Both gradients are the same formula
read backwards: `A errors A^T` serves the two, and the transformed weight serves the outputs and the inputs' gradient.

The matrices follow from the points at which polynomials are multiplied: 0, 1, -1 and infinity for tiles of 2x2 outputs;
for 4x4 they are 0, +-1/sqrt(2), +-sqrt(2) and infinity, which round four times less than the usual 0, +-1, +-2.
Against double precision, and with 512 channels, results are within 1e-6 of their largest value with the small tiles,
which are exact for small integers, and within 4e-6 with the large ones.
Images are `[N, channels, height, width]`, best channels-last; everything is float32 and records no gradients.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hybridsnn.kernels.synapse.vectors import LINE
from hybridsnn.kernels.synapse.winograd_tiles import TILINGS, Tiling, correlate, multiply_transposed
from hybridsnn.kernels.threads import over_ranges

CHANNELS = 64  # with 32 the transforms cost more than the multiplications they save; with 64 the backward pass gains
THREAD = 262144  # values that are worth waking a thread for: it takes a tenth of a millisecond
PRODUCTS = 2**22  # multiplications, the same
CHUNK = 9216  # transformed values of a channel at a time: what goes into the matrix products stays in the cache
TILES = 128  # that a thread of `forward` carries through all stages together


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


def tiling_for(images: Tensor) -> Tiling:
    """The tiling with which images `[N, channels, H, W]` take fewer multiplications, however many they are."""
    return min(TILINGS.values(), key=lambda each: each.matrices * each.tiles(*images.shape[2:]))


def transform_weight(weight: Tensor, tiling: Tiling) -> Tensor:
    """The weight `[out, in, 3, 3]` as matrices `[16 or 36, in, out]`, for `forward` and for the gradients of inputs."""
    filters = _channels_last(weight)
    outs, channels = weight.shape[:2]
    transformed = filters.new_empty(tiling.matrices, channels, outs)
    over_ranges(
        tiling.transform_weight, outs, math.ceil(THREAD / (9 * channels * LINE)) * LINE,
        filters.flatten(0, 2).numpy(), transformed.view(-1).numpy(),
    )  # fmt: skip
    return transformed


def forward(
    inputs: Tensor,
    transformed_weight: Tensor,
    bias: Tensor | None = None,
    *,
    frames: Tensor | None = None,
    into: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """Convolve `[N, in, H, W]` to `[N, out, H, W]` (channels-last), with zeros around the image.

    No bit of an image's result depends on the other images, or on threads.

    Args:
        frames: int64, which of the N images to convolve; all by default.
        into: a contiguous `[N, H, W, channels]` that is written to and returned, `[N, channels, H, W]`.
        first: the channel of `into` that the first output channel becomes.
    """
    matrices, channels, outs = transformed_weight.shape
    tiling, images = TILINGS[matrices], _channels_last(inputs)
    batch, height, width, _ = images.shape
    made = images.new_empty(batch, height, width, outs) if into is None else into
    frames = torch.arange(batch) if frames is None else frames
    shift = made.new_zeros(outs) if bias is None else bias.detach()
    over_ranges(
        tiling.convolve, len(frames) * tiling.rows(height), _worth(tiling, width * max(channels, outs)),
        images.flatten(2).numpy(), frames.numpy(), channels, transformed_weight.view(-1).numpy(),
        made.flatten(2).numpy(), first, made.shape[3], shift.numpy(), max(1, TILES // tiling.rows(width)),
    )  # fmt: skip
    return made.permute(0, 3, 1, 2)


def input_gradient(errors: Tensor, transformed_weight: Tensor) -> Tensor:
    """The gradient `[N, in, H, W]` (channels-last) of the inputs, from that of the outputs `[N, out, H, W]`."""
    tiling = TILINGS[transformed_weight.shape[0]]
    gradient = errors.new_empty(errors.shape[0], *errors.shape[2:], transformed_weight.shape[1])
    for few_errors, few_gradients in _chunks(tiling, _channels_last(errors), gradient):
        _pass_on(tiling, _tiles(tiling, few_errors, errors=True), transformed_weight, few_gradients)
    return gradient.permute(0, 3, 1, 2)


class WeightGradient:
    """The gradient of a weight `[out, in, 3, 3]`: a sum over time steps of 16 or 36 matrices, transformed once."""

    def __init__(self, weight: Tensor, tiling: Tiling):
        last = weight.is_contiguous(memory_format=torch.channels_last)
        self._format = torch.channels_last if last else torch.contiguous_format
        self._weight = weight.detach()
        self._tiling = tiling
        self._sum = weight.new_zeros(tiling.matrices, *weight.shape[:2])

    def add(self, inputs: Tensor, errors: Tensor) -> None:
        """Add one time step: its inputs `[N, in, H, W]` and the gradient of its outputs `[N, out, H, W]`."""
        for few_inputs, few_errors in _chunks(self._tiling, _channels_last(inputs), _channels_last(errors)):
            self._add(few_inputs, _tiles(self._tiling, few_errors, errors=True))

    def add_and_pass(self, inputs: Tensor, errors: Tensor, transformed_weight: Tensor) -> Tensor:
        """`add` and `input_gradient` in one, which transforms the errors once; the weight has the same tiling."""
        tiling = self._tiling
        gradient = errors.new_empty(errors.shape[0], *errors.shape[2:], transformed_weight.shape[1])
        few = _chunks(tiling, _channels_last(inputs), _channels_last(errors), gradient)
        for few_inputs, few_errors, few_gradients in few:
            tiles = _tiles(tiling, few_errors, errors=True)
            self._add(few_inputs, tiles)
            _pass_on(tiling, tiles, transformed_weight, few_gradients)
        return gradient.permute(0, 3, 1, 2)

    def result(self) -> Tensor:
        """The sum so far `[out, in, 3, 3]`, in the memory format of the weight."""
        _, outs, channels = self._sum.shape
        gradient = self._sum.new_empty(outs, 3, 3, channels)
        over_ranges(
            self._tiling.merge_weight_gradient, outs, math.ceil(THREAD / (9 * channels)),
            gradient.flatten(0, 2).numpy(), self._sum.flatten(0, 1).numpy(),
        )  # fmt: skip
        return gradient.permute(0, 3, 1, 2).contiguous(memory_format=self._format)

    def _add(self, images: Tensor, error_tiles: Tensor) -> None:
        rows = self._tiling.tiles(*images.shape[1:3]) * len(images)
        over_ranges(
            correlate, self._tiling.matrices, math.ceil(PRODUCTS / (rows * self._sum[0].numel())),
            error_tiles.numpy(), _tiles(self._tiling, images, errors=False).numpy(), self._sum.view(-1).numpy(),
            rows, *self._sum.shape[1:],
        )  # fmt: skip


def _pass_on(tiling: Tiling, error_tiles: Tensor, transformed_weight: Tensor, gradient: Tensor) -> None:
    """Write the gradient `[N, H, W, in]` of the inputs of a few images."""
    batch, height, width, channels = gradient.shape
    rows, outs = batch * tiling.tiles(height, width), transformed_weight.shape[2]
    products = error_tiles.new_empty(tiling.matrices, rows * channels + LINE)
    over_ranges(
        multiply_transposed, tiling.matrices, math.ceil(PRODUCTS / (rows * outs * channels)),
        error_tiles.numpy(), transformed_weight.view(-1).numpy(), products.numpy(), rows, outs, channels,
    )  # fmt: skip
    over_ranges(
        tiling.merge_input_gradient, batch * tiling.rows(height), _worth(tiling, width * channels),
        gradient.flatten(2).numpy(), channels, products.numpy(),
    )  # fmt: skip


def _channels_last(values: Tensor) -> Tensor:
    """`[N, C, H, W]` as a contiguous `[N, H, W, C]`: a view where it lies in memory like that."""
    return values.detach().permute(0, 2, 3, 1).contiguous()


def _chunks(tiling: Tiling, *images: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Several `[N, H, W, C]`, the same few images of each at a time."""
    batch, height, width, _ = images[0].shape
    parts = min(batch, math.ceil(batch * tiling.tiles(height, width) * tiling.matrices / CHUNK))
    return zip(*(each.tensor_split(parts) for each in images), strict=True)


def _tiles(tiling: Tiling, images: Tensor, *, errors: bool) -> Tensor:
    """Images `[N, H, W, C]`, inputs or errors of outputs, as transformed tiles `[matrices, tiles * C + LINE]`."""
    batch, height, width, channels = images.shape
    tiles = images.new_empty(tiling.matrices, batch * tiling.tiles(height, width) * channels + LINE)
    over_ranges(
        tiling.transform_errors if errors else tiling.transform_inputs,
        batch * tiling.rows(height), _worth(tiling, width * channels),
        images.flatten(2).numpy(), channels, tiles.numpy(),
    )  # fmt: skip
    return tiles


def _worth(tiling: Tiling, line: int) -> int:
    """How many rows of tiles are worth a thread, of images whose lines have so many values."""
    return math.ceil(THREAD / (tiling.outputs * line))
