"""Convolutions of images of a few pixels in half precision, each as one product of matrices.

On a CPU, what PyTorch does for them is up to ten times slower: it has many channels to sum over and few pixels to share
among vectors and threads.
"""

from typing import Any

from torch import Tensor, nn

PIXELS = 16  # of an image, up to which a convolution is best one product of matrices; with 64 it is slower


def supports(module: Any, values: Tensor) -> bool:
    """Whether a module is a convolution `[N, C, H, W]` to `[N, *, H, W]` that is best one product of matrices."""
    return (
        isinstance(module, nn.Conv2d)
        and values.device.type == "cpu"
        and values.shape[2] * values.shape[3] <= PIXELS
        and module.padding_mode == "zeros"
        and module.groups == 1
        and module.stride == module.dilation == (1, 1)
        and module.padding == tuple((size - 1) // 2 for size in module.kernel_size)
        and all(size % 2 for size in module.kernel_size)
    )


def convolution(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Values `[N, in, H, W]` and a weight `[out, in, h, w]` to `[N, out, H, W]`, channels-last."""
    filters = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
    return _images(nn.functional.linear(_patches(values, weight), filters, bias), values)


def input_gradient(error: Tensor, weight: Tensor) -> Tensor:
    """The error `[N, out, H, W]` of the outputs to that of the values: a convolution with the weight turned round."""
    turned = weight.flip(2, 3).permute(2, 3, 0, 1).reshape(-1, weight.shape[1])
    return _images(_patches(error, weight) @ turned, error)


def weight_gradient(values: Tensor, error: Tensor, weight: Tensor) -> Tensor:
    """The gradient `[out, in, h, w]` of a weight like this one."""
    rows = error.permute(0, 2, 3, 1).reshape(-1, error.shape[1])
    gradient = rows.t() @ _patches(values, weight)
    return gradient.view(len(weight), *weight.shape[2:], -1).permute(0, 3, 1, 2)


def _patches(values: Tensor, weight: Tensor) -> Tensor:
    """What each output sees of the values `[N, C, H, W]`: `[N * H * W, h * w * C]`."""
    high, wide = weight.shape[2:]
    padded = nn.functional.pad(values.permute(0, 2, 3, 1), (0, 0, wide // 2, wide // 2, high // 2, high // 2))
    windows = padded.unfold(1, high, 1).unfold(2, wide, 1)  # [N, H, W, C, h, w]
    return windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, high * wide * values.shape[1])


def _images(rows: Tensor, like: Tensor) -> Tensor:
    """Rows `[N * H * W, C]` as images of the size of `like`: `[N, C, H, W]`, channels-last."""
    return rows.view(len(like), *like.shape[2:], -1).permute(0, 3, 1, 2)
