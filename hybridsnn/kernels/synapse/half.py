"""Synapses that learn in half precision: PyTorch's dense operations, with weights cast once a run."""

from typing import Any

import torch
from torch import Tensor, nn

from hybridsnn.kernels.synapse.learning import LearningSynapse, add_gradient

PIXELS = 16  # of a picture, up to which a convolution is best one product of matrices; with 64 it is slower


def supports(module: nn.Module, values: Tensor) -> bool:
    """Whether a module runs in half precision on `values`, padded with a number of zeros if at all."""
    zeros = getattr(module, "padding_mode", "zeros") == "zeros" and not isinstance(getattr(module, "padding", 0), str)
    device = values.device.type
    return zeros and torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device).itemsize == 2


class HalfSynapse(LearningSynapse):
    """A synapse whose values and errors are in half precision, and whose gradients are summed in that of its weight.

    Args:
        module: that `supports` allows.
        values: what it will be run on.
    """

    def __init__(self, module: nn.Module, values: Tensor):
        super().__init__(module)
        self.dtype = torch.get_autocast_dtype(values.device.type)
        self.half = self.weight.detach().to(self.dtype)
        self.half_bias = None if self.bias is None else self.bias.detach().to(self.dtype)

    def forward(self, values: Tensor) -> Tensor:
        module: Any = self.module
        values = values.to(self.dtype)
        if isinstance(module, nn.Linear):
            return nn.functional.linear(values, self.half, self.half_bias)
        if _is_small(module, values):
            rows = nn.functional.linear(
                _patches(values, *module.kernel_size), _filters(self.half), self.half_bias
            )
            return _pictures(rows, values)
        output: Tensor = module._conv_forward(values, self.half, self.half_bias)
        return output

    def pass_on(self, error: Tensor, trace: Tensor, needs_input: bool) -> Tensor | None:
        module: Any = self.module
        learns = self.weight.requires_grad
        error, trace = error.to(self.dtype), trace.to(self.dtype)
        if isinstance(module, nn.Linear):
            if learns:
                add_gradient(self.weight, error.flatten(0, -2).t() @ trace.flatten(0, -2))
            return error @ self.half if needs_input else None
        if _is_small(module, trace):
            if learns:
                gradient = _rows(error).t() @ _patches(trace, *module.kernel_size)
                add_gradient(self.weight, gradient.view(len(self.half), *module.kernel_size, -1).permute(0, 3, 1, 2))
            if not needs_input:
                return None
            turned = self.half.flip(2, 3).permute(2, 3, 0, 1).reshape(-1, self.half.shape[1])
            return _pictures(_patches(error, *module.kernel_size) @ turned, error)
        passed, gradient, _ = torch.ops.aten.convolution_backward(
            error, trace, self.half, None, module.stride, module.padding, module.dilation,
            False, [0] * len(module.stride), module.groups, [needs_input, learns, False],
        )  # fmt: skip
        if learns:
            add_gradient(self.weight, gradient)
        return passed if needs_input else None


def _is_small(module: Any, values: Tensor) -> bool:
    """Whether a convolution `[N, C, H, W]` to `[N, *, H, W]` is best one product of matrices.

    On a CPU, what PyTorch does for pictures of a few pixels is up to ten times slower: it has many channels to sum over
    and few pixels to share among vectors and threads.
    """
    padding = tuple((size - 1) // 2 for size in module.kernel_size)
    return (
        isinstance(module, nn.Conv2d)
        and values.device.type == "cpu"
        and values.shape[2] * values.shape[3] <= PIXELS
        and module.groups == 1
        and module.stride == module.dilation == (1, 1)
        and module.padding == padding
        and all(size % 2 for size in module.kernel_size)
    )


def _rows(values: Tensor) -> Tensor:
    """`[N, C, H, W]` as `[N * H * W, C]`."""
    return values.permute(0, 2, 3, 1).reshape(-1, values.shape[1])


def _filters(weight: Tensor) -> Tensor:
    """A weight `[out, in, h, w]` as `[out, h * w * in]`."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _patches(values: Tensor, high: int, wide: int) -> Tensor:
    """What each output of a convolution `[N, C, H, W]` sees: `[N * H * W, high * wide * C]`."""
    padded = nn.functional.pad(values.permute(0, 2, 3, 1), (0, 0, wide // 2, wide // 2, high // 2, high // 2))
    windows = padded.unfold(1, high, 1).unfold(2, wide, 1)  # [N, H, W, C, high, wide]
    return windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, high * wide * values.shape[1])


def _pictures(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_rows`, for pictures of the size of `like`: `[N, C, H, W]`, channels-last."""
    return rows.view(len(like), *like.shape[2:], -1).permute(0, 3, 1, 2)
