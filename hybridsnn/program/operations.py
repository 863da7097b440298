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
    SHAPE = "change of shape"
    QUESTION = "question for a shape"
    OTHER = "other"


class Weighting(nn.Module):
    """A synapse from each value to itself, for a shortcut that has no synapse of its own.

    Args:
        shape: of the weight: `()` for one number, `(channels, 1, 1)` for one a channel.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape), requires_grad=False)

    def forward(self, values: Tensor) -> Tensor:
        """`[...]` to `[...]`."""
        return values * self.weight


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


SYNAPSES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # the modules that can carry spikes with weights
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
SHAPES = (nn.Flatten, nn.Unflatten, nn.Identity)

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
    **dict.fromkeys(SHAPES, _SHAPE),
    nn.ReLU: _RELU,
    QCFS: _RELU,
    Weighting: Operation(Role.WEIGHTING),
}
FUNCTIONS: dict[Any, Operation] = {
    **dict.fromkeys((functional.relu, functional.relu_, torch.relu, torch.relu_), _RELU),
    **dict.fromkeys((functional.dropout, torch.dropout), _DROPOUT),
    **dict.fromkeys((functional.avg_pool2d, functional.adaptive_avg_pool2d, torch.mean), _POOL),
    **dict.fromkeys((functional.max_pool1d, functional.max_pool2d, functional.max_pool3d), _MAX_POOL),
    **dict.fromkeys((operator.add, operator.iadd, torch.add), _SUM),
    **dict.fromkeys((torch.flatten, torch.reshape, operator.getitem), _SHAPE),
    getattr: _QUESTION,
    **dict.fromkeys((operator.sub, torch.sub, torch.cat), _LINEAR),
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
