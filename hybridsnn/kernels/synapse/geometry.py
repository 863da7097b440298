"""The sizes of a convolution or linear layer, and how its weight is cut so that each piece fits a cache."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybridsnn.kernels.synapse.vectors import WIDTHS

ROWS = 576  # of a weight that are copied together: 144 KiB, a third of a small second-level cache. The order of sums!
ADDITIONS = 2**21  # that are worth waking a thread for: it takes a tenth of a millisecond

Pair = tuple[int, int]


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
    width_of_block: int  # output channels that are computed together

    @classmethod
    def of(cls, inputs: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> "Geometry":
        """Of a convolution, or of a linear layer as the convolution of images of one pixel."""
        if weight.dim() == 2:
            return cls.of(inputs[:, :, None, None], weight[:, :, None, None], (1, 1), (0, 0))
        batch, channels, height, width = inputs.shape
        out_channels, _, kernel_height, kernel_width = weight.shape
        out_height = (height + 2 * padding[0] - kernel_height) // stride[0] + 1
        out_width = (width + 2 * padding[1] - kernel_width) // stride[1] + 1
        return cls(
            batch, channels, height, width, out_channels, out_height, out_width, kernel_height, kernel_width,
            *stride, *padding, next((width for width in WIDTHS if width >= out_channels), WIDTHS[-1]),
        )  # fmt: skip

    @property
    def taps(self) -> int:
        return self.kernel_height * self.kernel_width

    @property
    def blocks(self) -> int:
        """How many blocks of output channels there are."""
        return math.ceil(self.out_channels / self.width_of_block)

    @property
    def outputs(self) -> int:
        """How many outputs a channel has."""
        return self.batch * self.out_height * self.out_width

    @property
    def taps_inside(self) -> int:
        """How many taps, of all outputs of an image, lie in the image."""
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

    @property
    def multiplications(self) -> int:
        """How many an image takes, with blocks of output channels that are filled up."""
        return self.channels * self.taps_inside * self.blocks * self.width_of_block

    def worth_a_thread(self, items: int, inputs: int) -> int:
        """How many items of work one thread should have, which together add a row for each tap of so many inputs."""
        additions = inputs * self.taps * self.blocks * self.width_of_block / (self.stride_y * self.stride_x)
        return max(1, math.ceil(items * min(1, ADDITIONS / max(1, additions))))

    def room_for_outputs(self, like: Tensor) -> Tensor:
        """Uninitialised, `[batch, out_height, out_width, blocks of channels]`."""
        return like.new_empty(self.batch, self.out_height, self.out_width, self.blocks * self.width_of_block)

    def starts(self, like: Tensor, bias: Tensor | None) -> Tensor:
        """What the sums of all output channels start from."""
        starts = like.new_zeros(self.blocks * self.width_of_block)
        if bias is not None:
            starts[: self.out_channels] = bias.detach()
        return starts

    def cut(self, outputs: Tensor) -> Tensor:
        """Room for outputs, once it is filled, as `[batch, out_channels, out_height, out_width]`, channels-last."""
        return outputs[..., : self.out_channels].contiguous().permute(0, 3, 1, 2)


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


def supports(inputs: Tensor, weight: Tensor, dilation: Pair = (1, 1), groups: int = 1) -> bool:
    """Whether `event_driven` and `direct` can take the place of this linear layer or convolution."""
    return (
        inputs.device.type == weight.device.type == "cpu"
        and inputs.dtype == weight.dtype == torch.float32
        and inputs.dim() == weight.dim()
        and weight.dim() in (2, 4)
        and tuple(dilation) == (1, 1)
        and groups == 1
        and inputs.numel() > 0
    )


def channels_last(values: Tensor) -> Tensor:
    """`[N, C, H, W]` as a contiguous `[N, H, W, C]`: a view where it lies in memory like that."""
    return values.detach().permute(0, 2, 3, 1).contiguous()


def flat(values: Tensor) -> Any:
    """The numpy array of a contiguous tensor's memory."""
    return values.detach().view(-1).numpy()
