"""Average pools as sums over their windows, for what counts spikes or has to do without division."""

import math
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
