"""The one table of operations: what each module, function and method does in a network.

Conversion, balancing, learning and the loop over time all ask here, so that they cannot disagree.
"""

import operator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from hybridsnn.activations import QCFS
from hybridsnn.neurons import SharedDropout, SpikingNeuron, TemporalModule


class Role(Enum):
    """What a node of a network is there for."""

    INPUT = "input"
    OUTPUT = "output"
    ATTRIBUTE = "tensor of the network"
    SYNAPSE = "synapse"
    WEIGHTING = "weighting"
    NEURON = "neuron"
    TEMPORAL = "other module that sees time"
    RELU = "ReLU"
    DROPOUT = "dropout"
    POOL = "average pool"
    MAX_POOL = "max pool"
    NORM = "batch norm"
    SUM = "sum"
    SHAPE = "change of shape or place"
    QUESTION = "question for a shape"
    OTHER = "other"


class Weighting(nn.Module):
    """A synapse from each value to itself: a shortcut without a synapse of its own, a constant factor, a lone norm.

    Args:
        shape: of the weight: `()` for one number, `(channels, 1, 1)` for one a channel.
        bias: whether each value gets something added too, of the same shape.
    """

    def __init__(self, shape: tuple[int, ...] = (), *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(shape), requires_grad=False) if bias else None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None, *, learns: bool = False) -> "Weighting":
        """One with these numbers, which broadcast to each other."""
        shape = weight.shape if bias is None else torch.broadcast_shapes(weight.shape, bias.shape)
        made = cls(tuple(shape), bias=bias is not None).to(weight)
        made.weight.copy_(weight.expand(shape))
        if made.bias is not None and bias is not None:
            made.bias.copy_(bias.expand(shape))
        return made.requires_grad_(learns)

    def forward(self, values: Tensor) -> Tensor:
        """`[...]` to `[...]`."""
        values = values * self.weight
        return values if self.bias is None else values + self.bias


def reshaped(values: Tensor, sample: tuple[int, ...]) -> Tensor:
    """Values `[N, ...]` with each sample brought into another shape."""
    return values.reshape(len(values), *sample)


@dataclass(frozen=True)
class Operation:
    """What is known of a kind of node.

    Attributes:
        role: what it is there for.
        linear: whether the gradients of its inputs follow from that of its output alone, without values.
        convertible: whether it has a counterpart in a spiking network whose activation scale is known.
    """

    role: Role
    linear: bool = False
    convertible: bool = True


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
SYNAPSES = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)  # the modules that can carry spikes with weights
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
RESIZINGS = (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
ZERO_PADS = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)
SHAPES = (nn.Flatten, nn.Unflatten, nn.Identity, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, *ZERO_PADS)
RELUS = (nn.ReLU, nn.ReLU6, nn.Hardtanh, QCFS)

_POOL = Operation(Role.POOL, linear=True)
_MAX_POOL = Operation(Role.MAX_POOL, convertible=False)
_SUM = Operation(Role.SUM, linear=True)
_SHAPE = Operation(Role.SHAPE, linear=True)
_QUESTION = Operation(Role.QUESTION, linear=True)
_LINEAR = Operation(Role.OTHER, linear=True, convertible=False)
_RELU, _DROPOUT = Operation(Role.RELU), Operation(Role.DROPOUT)
_OTHER = Operation(Role.OTHER, convertible=False)

# By exact type: a subclass may compute something else (timm's batch norms hold an activation).
MODULES: dict[type[nn.Module], Operation] = {
    **dict.fromkeys(SYNAPSES, Operation(Role.SYNAPSE, linear=True)),
    **dict.fromkeys(BATCH_NORMS, Operation(Role.NORM)),
    **dict.fromkeys(POOLS, _POOL),
    **dict.fromkeys(MAX_POOLS, _MAX_POOL),
    **dict.fromkeys(DROPOUTS, _DROPOUT),
    **dict.fromkeys(RESIZINGS, _POOL),
    **dict.fromkeys(SHAPES, _SHAPE),
    **dict.fromkeys(RELUS, _RELU),
    Weighting: Operation(Role.WEIGHTING),
}
FUNCTIONS: dict[Any, Operation] = {
    **dict.fromkeys((functional.relu, functional.relu_, torch.relu, torch.relu_), _RELU),
    **dict.fromkeys((functional.dropout, torch.dropout), _DROPOUT),
    **dict.fromkeys((functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d), _POOL),
    **dict.fromkeys((functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d), _POOL),
    **dict.fromkeys((functional.adaptive_avg_pool3d, functional.interpolate, torch.mean, torch.sum), _POOL),
    **dict.fromkeys((functional.max_pool1d, functional.max_pool2d, functional.max_pool3d), _MAX_POOL),
    **dict.fromkeys((operator.add, operator.iadd, torch.add), _SUM),
    **dict.fromkeys((torch.flatten, torch.reshape, torch.permute, reshaped, operator.getitem), _SHAPE),
    **dict.fromkeys((torch.cat, torch.flip, torch.roll, functional.pad), _SHAPE),
    **dict.fromkeys((functional.pixel_shuffle, functional.pixel_unshuffle, functional.channel_shuffle), _SHAPE),
    **dict.fromkeys((operator.sub, torch.sub), _LINEAR),
}
METHODS: dict[str, Operation] = {
    **dict.fromkeys(("relu", "relu_"), _RELU),
    "mean": _POOL,
    **dict.fromkeys(("add", "add_"), _SUM),
    **dict.fromkeys(("flatten", "view", "reshape", "contiguous"), _SHAPE),
    "size": _QUESTION,
    **dict.fromkeys(("permute", "transpose", "sum"), _LINEAR),
}
_PLACES = {
    "placeholder": Operation(Role.INPUT),
    "output": Operation(Role.OUTPUT),
    "get_attr": Operation(Role.ATTRIBUTE, convertible=False),
}


def operation_of(node: fx.Node, module: nn.Module | None) -> Operation:
    """What is known of a node of a captured graph, and of the module it calls, if it calls one."""
    if node.op in _PLACES:
        return _PLACES[node.op]
    if module is None:
        if node.target is getattr:  # anything else than a size is a value of its own
            return _QUESTION if node.args[1] in ("shape", "ndim") else _OTHER
        if node.op == "call_function":
            return FUNCTIONS.get(node.target, _OTHER)
        return METHODS.get(str(node.target), _OTHER)
    if isinstance(module, SpikingNeuron):
        return Operation(Role.NEURON)
    if isinstance(module, TemporalModule):
        return _DROPOUT if isinstance(module, SharedDropout) else Operation(Role.TEMPORAL, convertible=False)
    return MODULES.get(type(module), _OTHER)


def module_of(body: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, None for other nodes."""
    return body.get_submodule(str(node.target)) if node.op == "call_module" else None


def role_of(body: fx.GraphModule, node: fx.Node) -> Role:
    """What a node of a body is there for."""
    return operation_of(node, module_of(body, node)).role


def is_sum(node: fx.Node) -> bool:
    """Whether a node adds two values."""
    return node.op != "call_module" and operation_of(node, None).role is Role.SUM
