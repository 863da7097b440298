"""How activation scales go through operations, and which operations need what they read to have one scale."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from hybridsnn.neurons import GatedMaxPool
from hybridsnn.program.operations import ZERO_PADS, Role, module_of, role_of

REDUCTIONS = (torch.mean, torch.sum)


def keeps_scale(body: fx.GraphModule, node: Any) -> bool:
    """Whether an operation gives values of the scale and the number of dimensions of those that it reads."""
    role = role_of(body, node)
    if role in (Role.POOL, Role.MAX_POOL, Role.TEMPORAL):
        return node.target not in REDUCTIONS
    return role is Role.DROPOUT


def axes_of_one_scale(body: fx.GraphModule, node: Any, rank: int, granularity: str) -> range | list[int]:
    """The dimensions of a sample along which an operation needs the scale of what it reads to be the same.

    Args:
        rank: number of dimensions of a sample.
        granularity: of thresholds.
    """
    role, module = role_of(body, node), module_of(body, node)
    if role is Role.SYNAPSE:
        return range(rank - 1) if isinstance(module, nn.Linear) else range(1, rank)
    if role in (Role.POOL, Role.MAX_POOL, Role.TEMPORAL):
        if node.target in REDUCTIONS:
            return [axis - 1 for axis in node.args[1]]
        pool = module.pool if isinstance(module, GatedMaxPool) else module
        name = getattr(node.target, "__name__", "") if pool is None else type(pool).__name__
        return range(rank - int(name[-2]), rank) if name[-2:-1].isdigit() else range(1, rank)
    if role is Role.NEURON:
        return range(1 if granularity == "channel" else 0, rank)
    if role is Role.WEIGHTING and module is not None and module.bias is not None:
        shape = _shape_of(module.get_parameter("weight"), rank)
        return [axis for axis in range(rank) if shape[axis] == 1]
    return range(rank) if role is Role.OUTPUT else []


def fits(scale: Tensor, weight: Tensor) -> bool:
    """Whether a weight has a number of its own for each of some scales."""
    shape = _shape_of(weight, scale.dim())
    return all(size in (1, shape[axis]) for axis, size in enumerate(scale.shape))


def _shape_of(weight: Tensor, rank: int) -> list[int]:
    return [1] * (rank - weight.dim()) + list(weight.shape)


def through(body: fx.GraphModule, node: Any, incoming: list[Tensor]) -> Tensor:
    """The scale of what an operation without weights gives, from the scales of what it reads.

    Where numbers change places, scales do so too. What mixes values reads values of one scale.
    """
    module, sources = module_of(body, node), node.all_input_nodes
    if node.target in REDUCTIONS:
        axes = [axis - 1 for axis in node.args[1]]
        return incoming[0].mean(axes, keepdim=bool(node.args[2]))
    if role_of(body, node) is not Role.SHAPE or (all(scale.numel() == 1 for scale in incoming) and len(incoming) == 1):
        scale = incoming[0]
        return scale.reshape([1] * len(node.meta["shape"])) if scale.numel() == 1 else scale
    if isinstance(module, ZERO_PADS) or node.target is functional.pad:
        sides = module.padding if module is not None else node.args[1]
        constant = module is not None or (node.args[2:] or ("constant",))[0] == "constant"
        if constant:
            return _padded(incoming[0], sides)
    whole = {
        source: scale.expand(source.meta["shape"]).unsqueeze(0) for source, scale in zip(sources, incoming, strict=True)
    }
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), whole.__getitem__)
    function: Any = node.target if module is None else module
    return compressed(function(*args, **kwargs)[0])


def _padded(scale: Tensor, sides: Any) -> Tensor:
    """Scales around which zeros, which have any scale, are put."""
    given = [0] * (2 * scale.dim() - len(sides)) + [
        side for pair in zip(sides[-2::-2], sides[::-2], strict=True) for side in pair
    ]
    kept = [
        side if scale.shape[axis] > 1 else 0 for axis in range(scale.dim()) for side in given[2 * axis : 2 * axis + 2]
    ]
    last_first = [side for axis in reversed(range(scale.dim())) for side in kept[2 * axis : 2 * axis + 2]]
    return functional.pad(scale, last_first, value=float(scale.max()))


def compressed(scale: Tensor) -> Tensor:
    """The same scales, of size 1 along each dimension in which they are all equal."""
    for axis in range(scale.dim()):
        first = scale.narrow(axis, 0, 1)
        if bool((scale == first).all()):
            scale = first
    return scale
