"""Average pools as sums over their windows, for what counts spikes or has to do without division."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hybridsnn.program.graph import Node

AVERAGE = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_ARGUMENTS = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")


def summed(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The sum over each window of an average pool, for the arguments of its call; values `[N, ...]`."""
    module = node.module
    values: Tensor = args[0] if args else kwargs["input"]
    if isinstance(module, AVERAGE) or node.source.target is functional.avg_pool2d:
        if isinstance(module, AVERAGE):
            given = {name: getattr(module, name) for name in ("kernel_size", "stride", "padding", "ceil_mode")}
        else:
            given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
            given = {name: value for name, value in given.items() if name in _ARGUMENTS[1:5]}
        if isinstance(module, nn.AvgPool3d):
            return functional.avg_pool3d(values, **given, divisor_override=1)
        if not isinstance(module, nn.AvgPool1d):
            return functional.avg_pool2d(values, **given, divisor_override=1)
        ceil_mode = given.pop("ceil_mode")
        flat = {name: size if isinstance(size, int) else size[0] for name, size in given.items()}
        lined = functional.avg_pool2d(
            values.unsqueeze(-2),
            (1, flat["kernel_size"]),
            (1, flat["stride"]),
            (0, flat["padding"]),
            ceil_mode,
            divisor_override=1,
        )
        return lined.squeeze(-2)
    pooled: Tensor = node.call(args, kwargs)
    if isinstance(module, ADAPTIVE) or node.source.target is functional.adaptive_avg_pool2d:
        dimensions = 2 if module is None else ADAPTIVE.index(type(module)) + 1
        before, after = values.shape[-dimensions:], pooled.shape[-dimensions:]
        for place, (size, parts) in enumerate(zip(before, after, strict=True)):
            lengths = [math.ceil((part + 1) * size / parts) - part * size // parts for part in range(parts)]
            pooled = pooled * torch.tensor(lengths, dtype=pooled.dtype).view(-1, *[1] * (dimensions - 1 - place))
        return pooled
    return pooled * (values.numel() / pooled.numel())  # a mean


@dataclass(frozen=True)
class SumPool:
    """An average pool whose windows are equally large, as a module that sums.

    Attributes:
        module: sums over each window.
        window: how many values a window has: the average is the sum divided by it.
        flat: whether the module leaves axes of size 1 that the average pool does not.
    """

    module: nn.Module
    window: int
    flat: bool = False


def sum_pool(node: Node, before: tuple[int, ...], after: tuple[int, ...]) -> SumPool | None:
    """A pool of a program as a module that sums; None if its windows differ in size, or it is not of images.

    Args:
        before, after: shapes of one sample, `[channels, height, width]`.
    """
    module = node.module
    if len(before) != 3:
        return None
    if isinstance(module, nn.AvgPool2d) and module.divisor_override is None:
        kernel, stride, padding = _pair(module.kernel_size), _pair(module.stride), _pair(module.padding)
        uneven = any(
            (size + 2 * edge - window) // step + 1 != made
            for size, edge, window, step, made in zip(before[1:], padding, kernel, stride, after[1:], strict=True)
        )
        if uneven or (any(padding) and not module.count_include_pad):
            return None
        return SumPool(nn.AvgPool2d(kernel, stride, padding, divisor_override=1), math.prod(kernel))
    flat = len(after) == 1
    made = (1, 1) if flat else after[1:]
    if after[0] != before[0] or any(size % parts for size, parts in zip(before[1:], made, strict=True)):
        return None
    if isinstance(module, nn.AvgPool2d) or node.source.target is functional.avg_pool2d:
        return None
    kernel = before[1] // made[0], before[2] // made[1]
    return SumPool(nn.AvgPool2d(kernel, divisor_override=1), math.prod(kernel), flat)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
