"""What runs a synapse, forward and backward: the one place that chooses.

Forward, `Plan.of` looks at the layer, at one image and at nothing else. `event_driven` and `direct` give the same bits,
so the time that they would take decides between them, call by call. Minimal filtering rounds differently: whether it
runs a frame depends on the layer's sizes and on the share of that frame's inputs that is not 0. So a float32 result on
a CPU has the same bits however frames are batched, cut in time and shared among threads; what is left to PyTorch has
them only as far as PyTorch does: other precisions and devices, grouped and dilated convolutions, those of one or three
dimensions, and modules that have hooks or a `forward` of their own.

Backward, sums run over the batch and are the same to rounding only.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hybridsnn.kernels.synapse import costs, direct, event_driven, patches, winograd
from hybridsnn.kernels.synapse.geometry import Geometry, Pair, supports
from hybridsnn.kernels.synapse.lists import densities, density
from hybridsnn.kernels.synapse.winograd_tiles import TILINGS, Tiling

FILTERS = 128  # output channels at a time: their transformed weights take megabytes, those of a deep layer a hundred
ROOM = 2**20  # outputs of blocks that are filled up, at a time
GRID = 2.0**14  # sums of multiples of one over it are exact in float32, up to 1024; of quarters of them up to 256


class Plan(NamedTuple):
    """How a convolution or linear layer runs forward, for any number of frames.

    Attributes:
        frame: the geometry for one frame.
        stride, padding: of height and width.
        tiling: of minimal filtering; None where it does not serve.
        limit: the share of a frame's inputs that is not 0 from which on minimal filtering runs it.
    """

    frame: Geometry
    stride: Pair
    padding: Pair
    tiling: Tiling | None
    limit: float

    @classmethod
    def of(cls, module: Any, values: Tensor) -> "Plan | None":
        """For `values` `[N, ...]`, whose number does not matter; None: the module itself has to run."""
        if not _is_plain(module) or torch.is_autocast_enabled(values.device.type):
            return None
        weight, tiling, limit = module.weight, None, 1.0
        convolves = isinstance(module, nn.Conv2d)
        stride, padding = (module.stride, module.padding) if convolves else ((1, 1), (0, 0))
        dilation, groups = (module.dilation, module.groups) if convolves else ((1, 1), 1)
        if not supports(values, weight, dilation, groups):
            return None
        frame = Geometry.of(values[:1], weight, stride, padding)
        if convolves and winograd.supports(values, weight, stride, padding, dilation, groups):
            tiling = exact_tiling() if is_on_grid(weight) else winograd.tiling_for(values)
            dense = costs.winograd(frame, tiling)
            limit = costs.limit(frame, dense)
            if costs.direct(frame) <= dense or is_whole(weight):
                tiling = None
        return cls(frame, stride, padding, tiling, limit)

    def run(self, module: Any, values: Tensor, prepared: Tensor | None = None) -> Tensor:
        """What the module makes of `values`.

        Args:
            prepared: the transformed weight, if it is at hand.
        """
        if self.tiling is None:
            way: Any = event_driven if self.event_driven_pays(density(values), len(values)) else direct
            if isinstance(module, nn.Linear):
                return way.linear(values, module.weight, module.bias)
            room = self.frame.outputs * self.frame.blocks * self.frame.width_of_block
            if self.frame.out_channels % self.frame.width_of_block == 0 or len(values) * room <= ROOM:
                return way.convolution(values, module.weight, module.bias, self.stride, self.padding)
            # A few frames at a time, or blocks that are filled up would take several times the memory of the outputs.
            size = self.frame.out_height, self.frame.out_width, self.frame.out_channels
            outputs = values.new_empty(len(values), *size).permute(0, 3, 1, 2)
            count = max(1, ROOM // room)
            for some, made in zip(values.split(count), outputs.split(count), strict=True):
                made.copy_(way.convolution(some, module.weight, module.bias, self.stride, self.padding))
            return outputs
        if self.limit == 0:
            many, few = torch.arange(len(values)), torch.arange(0)
        else:
            dense = densities(values) >= self.limit
            many, few = (each.nonzero()[:, 0] for each in (dense, ~dense))
        geometry = self.frame._replace(batch=len(values))
        outputs = geometry.room_for_outputs(values)
        if len(few):
            event_driven.convolution(values, module.weight, module.bias, frames=few, into=outputs)
        if len(many):
            whole = [slice(0, len(module.weight))]
            for filters in blocks(module.weight) if prepared is None else whole:
                weight = prepared
                if weight is None:
                    weight = winograd.transform_weight(module.weight[filters], self.tiling)
                bias = None if module.bias is None else module.bias[filters]
                winograd.forward(values, weight, bias, frames=many, into=outputs, first=filters.start)
        return geometry.cut(outputs)

    def event_driven_pays(self, share: float, frames: int) -> bool:
        """Whether it is faster than `direct` where `share` of the inputs of so many frames is not 0."""
        geometry = self.frame._replace(batch=frames)
        return costs.event_driven(geometry, share) < costs.direct(geometry)


def transmit(module: Any, values: Tensor) -> Tensor:
    """Run a convolution or linear layer on `values`, `[N, ...]` to `[N, ...]`, without gradients."""
    plan = Plan.of(module, values)
    if plan is not None:
        return plan.run(module, values)
    if _is_plain(module) and _is_half(values) and patches.supports(module, values):
        half = torch.get_autocast_dtype(values.device.type)
        bias = None if module.bias is None else module.bias.to(half)
        return patches.convolution(values.to(half), module.weight.to(half), bias)
    output: Tensor = module(values)
    return output


def filters_fast(module: Any, values: Tensor) -> bool:
    """Whether minimal filtering gives both gradients of a convolution faster than PyTorch."""
    return (
        isinstance(module, nn.Conv2d)
        and _is_plain(module)
        and not torch.is_autocast_enabled(values.device.type)
        and winograd.supports(values, module.weight, module.stride, module.padding, module.dilation, module.groups)  # type: ignore[arg-type]
    )


def event_driven_gradient_pays(module: Any, values: Tensor) -> bool:
    """Whether the gradient of a weight is best summed over what is not 0 among the values that it learns from."""
    convolves = isinstance(module, nn.Conv2d)
    if not _is_plain(module) or torch.is_autocast_enabled(values.device.type) or not supports(values, module.weight):
        return False
    geometry = Geometry.of(values, module.weight, (1, 1), module.padding if convolves else (0, 0))
    dense = costs.dense_gradient(geometry, winograd.tiling_for(values) if convolves else None)
    return costs.event_driven_gradient(geometry, density(values)) < dense


def _is_half(values: Tensor) -> bool:
    """Whether synapses are to run in half precision."""
    device = values.device.type
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device).itemsize == 2


def _is_plain(module: Any) -> bool:
    """Whether a module is what PyTorch made it: no hooks, no `forward` of its own, zeros around the image, if any."""
    kind = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear
    return (
        isinstance(module, kind)
        and type(module).forward is kind.forward
        and not (module._forward_hooks or module._forward_pre_hooks)
        and getattr(module, "padding_mode", "zeros") == "zeros"
        and not isinstance(getattr(module, "padding", 0), str)
    )


def blocks(weight: Tensor) -> Iterator[slice]:
    """The output channels of a weight `[out, in, 3, 3]`, `FILTERS` at a time, the last of them with what is left."""
    starts = range(0, max(1, len(weight) // FILTERS) * FILTERS, FILTERS)
    for start in starts:
        yield slice(start, len(weight) if start == starts[-1] else start + FILTERS)


def exact_tiling() -> Tiling:
    """Tiles whose transforms only add and halve."""
    return TILINGS[16]


def is_whole(weight: Tensor) -> bool:
    """Whether all weights are integers of several bits: transforms would leave less room for their exact sums."""
    some = weight.detach()
    return torch.equal(some[:1], some[:1].round()) and torch.equal(some, some.round()) and bool(some.abs().max() > 1)


def is_on_grid(weight: Tensor) -> bool:
    """Whether all weights are multiples of a small power of two, as after quantisation: then sums of spikes are exact.

    Spike counts of such a network are the same on every machine, as long as nothing rounds.
    """
    for some in (weight[:1], weight):  # most weights are not, which the first filter shows
        scaled = some.detach() * GRID
        if not torch.equal(scaled, scaled.round()):
            return False
    return True
