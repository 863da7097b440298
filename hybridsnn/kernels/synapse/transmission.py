"""What a synapse makes of spikes, without gradients: the fastest way that keeps exact sums exact."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hybridsnn.kernels.synapse import costs, event_driven, patches, winograd

FILTERS = 128  # output channels at a time: their transformed weights take megabytes, those of a deep layer a hundred
GRID = 2.0**14  # sums of multiples of one over it are exact in float32, up to 1024; of quarters of them up to 256


def transmit(module: Any, values: Tensor) -> Tensor:
    """Run a convolution or linear layer on `values`, `[N, ...]` to `[N, ...]`."""
    if supports_sparse(module, values):
        convolves = isinstance(module, nn.Conv2d)
        geometry = (module.stride, module.padding) if convolves else ((1, 1), (0, 0))
        if costs.pays(event_driven.density(values), values, module.weight, *geometry):
            if convolves:
                return event_driven.convolution(values, module.weight, module.bias, *geometry)
            return event_driven.linear(values, module.weight, module.bias)
    if is_fast(module, values):
        return fast_convolution(module, values)
    if _is_half(values) and patches.supports(module, values):
        half = torch.get_autocast_dtype(values.device.type)
        bias = None if module.bias is None else module.bias.to(half)
        return patches.convolution(values.to(half), module.weight.to(half), bias)
    output: Tensor = module(values)
    return output


def supports_sparse(module: Any, values: Tensor) -> bool:
    """Whether the kernels whose cost goes with the number of spikes can run a module on `values`."""
    if not _is_plain(module, values):
        return False
    if isinstance(module, nn.Conv2d):
        return event_driven.supports(values, module.weight, module.dilation, module.groups)  # type: ignore[arg-type]
    return isinstance(module, nn.Linear) and event_driven.supports(values, module.weight)


def is_fast(module: Any, values: Tensor) -> bool:
    """Whether `fast_convolution` can run a module on `values`, and is faster than the module itself."""
    return (
        isinstance(module, nn.Conv2d)
        and _is_plain(module, values)
        and winograd.supports(values, module.weight, module.stride, module.padding, module.dilation, module.groups)  # type: ignore[arg-type]
    )


def _is_half(values: Tensor) -> bool:
    """Whether synapses are to run in half precision."""
    device = values.device.type
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device).itemsize == 2


def _is_plain(module: Any, values: Tensor) -> bool:
    """Whether a module runs at the precision of its weight, with a number of zeros around the picture, if any."""
    padded = getattr(module, "padding_mode", "zeros") == "zeros" and not isinstance(getattr(module, "padding", 0), str)
    return padded and not torch.is_autocast_enabled(values.device.type)


def fast_convolution(module: Any, values: Tensor) -> Tensor:
    """A convolution that `is_fast`, its weight transformed a few output channels at a time."""
    tiling = exact_tiling() if is_on_grid(module.weight) else winograd.tiling_for(values)
    outputs = []
    for filters in blocks(module.weight):
        bias = None if module.bias is None else module.bias[filters]
        outputs.append(winograd.forward(values, winograd.transform_weight(module.weight[filters], tiling), bias))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)


def blocks(weight: Tensor) -> Iterator[slice]:
    """The output channels of a weight `[out, in, 3, 3]`, a few at a time."""
    for first in range(0, len(weight), FILTERS):
        yield slice(first, first + FILTERS)


def exact_tiling() -> winograd.Tiling:
    """Tiles whose transforms only add and halve."""
    return winograd.TILINGS[16]


def is_on_grid(weight: Tensor) -> bool:
    """Whether all weights are multiples of a small power of two, as after quantisation: then sums of spikes are exact.

    Spike counts of such a network are the same on every machine, as long as nothing rounds.
    """
    for some in (weight[:1], weight):  # most weights are not, which the first filter shows
        scaled = some.detach() * GRID
        if not torch.equal(scaled, scaled.round()):
            return False
    return True
