"""A program as ONNX: what each node becomes, in float32 or in integers."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from hybridsnn.exporters.base import Source
from hybridsnn.neurons import SpikingNeuron
from hybridsnn.program.graph import Node
from hybridsnn.program.operations import POOLS, SYNAPSES, Role, reshaped
from hybridsnn.program.passes import shapes
from hybridsnn.program.ranges import ranges

OPSET = 17
RESHAPES = (nn.Flatten, nn.Unflatten, nn.Identity)
RESHAPING = (
    "flatten",
    "reshape",
    "view",
    "contiguous",
    "squeeze",
    "unsqueeze",
    "unflatten",
    torch.flatten,
    torch.reshape,
    reshaped,
)


class OnnxGraph:
    """Nodes and constants in the making.

    Args:
        constants: those of another graph, to share; the body of a loop sees the constants around it.
    """

    def __init__(self, constants: dict[str, onnx.TensorProto] | None = None, prefix: str = ""):
        self.nodes: list[onnx.NodeProto] = []
        self.constants = {} if constants is None else constants
        self.prefix = prefix

    def constant(self, name: str, values: Any) -> str:
        """A constant by name; made once."""
        if name not in self.constants:
            array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        return name

    def add(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """A node with one output; returns the output's name, which is `name` with the prefix of the graph."""
        made = self.prefix + name
        self.nodes.append(helper.make_node(kind, list(inputs), [made], name=made, **attributes))
        return made


class Float:
    """Values of float32."""

    spikes = frames = currents = TensorProto.FLOAT

    def __init__(self, source: Source):
        self.source = source

    def membrane(self, node: Node) -> int:
        """The type of a layer's membranes."""
        return TensorProto.FLOAT

    def synapse(self, graph: OnnxGraph, node: Node, value: str) -> str:
        module: Any = node.module
        weight = module.weight.detach().float()
        if isinstance(module, nn.Linear):
            made = graph.add("MatMul", [value, graph.constant(f"{node.name}.weight", weight.T)], node.name)
            if module.bias is None:
                return made
            bias = graph.constant(f"{node.name}.bias", module.bias.float())
            return graph.add("Add", [made, bias], f"{node.name}/with-bias")
        inputs = [value, graph.constant(f"{node.name}.weight", weight)]
        if module.bias is not None:
            inputs.append(graph.constant(f"{node.name}.bias", module.bias.float()))
        return graph.add("Conv", inputs, node.name, **geometry(module))

    def weighting(self, graph: OnnxGraph, node: Node, value: str) -> str:
        assert node.module is not None
        weight = graph.constant(f"{node.name}.weight", node.module.get_parameter("weight").float())
        return graph.add("Mul", [value, weight], node.name)

    def pool(self, graph: OnnxGraph, node: Node, value: str, shape: tuple[int, ...]) -> str:
        attributes, divisor = pool_of(node, shape)
        if attributes is None:
            axes = list(range(2, len(shape) + 1))
            return graph.add("ReduceMean", [value], node.name, axes=axes, keepdims=0)
        made = graph.add("AveragePool", [value], node.name, **attributes)
        if divisor is None:
            return made
        size = int(np.prod(attributes["kernel_shape"])) / divisor
        return graph.add("Mul", [made, graph.constant(f"{node.name}.size", np.float32(size))], f"{node.name}/sum")

    def sum(self, graph: OnnxGraph, node: Node, values: Sequence[str]) -> str:
        return graph.add("Add", values, node.name)

    def fire(self, graph: OnnxGraph, node: Node, current: str, membrane: str, dimensions: int) -> tuple[str, str]:
        """The current and the membranes of a layer to its spikes and membranes."""
        return self._fire(graph, node, current, membrane, dimensions, f"membrane/{node.name}")

    def _fire(
        self, graph: OnnxGraph, node: Node, current: str, membrane: str, dimensions: int, rest: str
    ) -> tuple[str, str]:
        module = node.module
        assert isinstance(module, SpikingNeuron)
        name = node.name
        threshold = graph.constant(f"{name}.threshold", self._along(module.threshold, dimensions))
        if bool((module.leak != 1).any()):
            leak = graph.constant(f"{name}.leak", module.leak.float())
            membrane = graph.add("Mul", [membrane, leak], f"{name}/leaked")
        potential = graph.add("Add", [membrane, current], f"potential/{name}")
        fired = graph.add("GreaterOrEqual", [potential, threshold], f"{name}/fired")
        spikes = graph.add("Cast", [fired], f"spikes/{name}", to=self.spikes)
        if module.reset == "hard":
            zero = graph.constant("zero", np.zeros((), helper.tensor_dtype_to_np_dtype(self.currents)))
            after = graph.add("Where", [fired, zero, potential], rest)
        else:
            lower = graph.add("Sub", [potential, threshold], f"{name}/reset")
            after = graph.add("Where", [fired, lower, potential], rest)
        return spikes, after

    def _along(self, parameter: Tensor, dimensions: int) -> Tensor:
        parameter = parameter.detach().float()
        return parameter.view(-1, *[1] * (dimensions - 1)) if parameter.dim() == 1 else parameter


class Whole(Float):
    """Values of integers: images of 8 bits with sign, spikes of 8 without, weights of 8, currents and membranes of 32,
    or membranes of 16 where their range allows it."""

    spikes, frames, currents = TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32

    def __init__(self, source: Source):
        super().__init__(source)
        self.ranges = ranges(source.model.program, source.sample, source.timesteps, source.largest_input)

    def membrane(self, node: Node) -> int:
        extent = max(self.ranges[node].extent, self.ranges[node.inputs[0]].extent)
        return TensorProto.INT16 if extent < 2**15 else TensorProto.INT32

    def synapse(self, graph: OnnxGraph, node: Node, value: str) -> str:
        module: Any = node.module
        weight = module.weight.detach().to(torch.int8)
        value = self._bytes(graph, node, value)
        if isinstance(module, nn.Linear):
            made = graph.add("MatMulInteger", [value, graph.constant(f"{node.name}.weight", weight.T)], node.name)
            shape: tuple[int, ...] = (-1,)
        else:
            weights = graph.constant(f"{node.name}.weight", weight)
            made = graph.add("ConvInteger", [value, weights], node.name, **geometry(module))
            shape = (-1, *[1] * (weight.dim() - 2))
        if module.bias is None:
            return made
        bias = graph.constant(f"{node.name}.bias", module.bias.detach().view(shape).to(torch.int32))
        return graph.add("Add", [made, bias], f"{node.name}/with-bias")

    def weighting(self, graph: OnnxGraph, node: Node, value: str) -> str:
        wide = graph.add("Cast", [value], f"{node.name}/wide", to=self.currents)
        assert node.module is not None
        weight = node.module.get_parameter("weight").detach().to(torch.int32)
        return graph.add("Mul", [wide, graph.constant(f"{node.name}.weight", weight)], node.name)

    def pool(self, graph: OnnxGraph, node: Node, value: str, shape: tuple[int, ...]) -> str:
        attributes, divisor = pool_of(node, shape)
        assert attributes is not None and divisor == 1  # pools of integers are sums
        for name in ("ceil_mode", "count_include_pad"):
            attributes.pop(name, None)
        kernel = attributes["kernel_shape"]
        ones = graph.constant(f"{node.name}.ones", np.ones((shape[0], 1, *kernel), np.int8))
        value = self._bytes(graph, node, value)
        return graph.add("ConvInteger", [value, ones], node.name, group=shape[0], **attributes)

    def sum(self, graph: OnnxGraph, node: Node, values: Sequence[str]) -> str:
        return graph.add("Add", [self._wide(graph, value) for value in values], node.name)

    def fire(self, graph: OnnxGraph, node: Node, current: str, membrane: str, dimensions: int) -> tuple[str, str]:
        kind, current = self.membrane(node), self._wide(graph, current)
        if kind == TensorProto.INT32:
            return super().fire(graph, node, current, membrane, dimensions)
        # Stored in 16 bits, computed in 32, which every runtime can.
        wide = graph.add("Cast", [membrane], f"{node.name}/wide", to=self.currents)
        spikes, after = self._fire(graph, node, current, wide, dimensions, f"{node.name}/rest")
        return spikes, graph.add("Cast", [after], f"membrane/{node.name}", to=kind)

    def _wide(self, graph: OnnxGraph, value: str) -> str:
        return graph.add(
            "Cast", [value], f"{value.removeprefix(graph.prefix)}/as-int32/{len(graph.nodes)}", to=self.currents
        )

    def _bytes(self, graph: OnnxGraph, node: Node, value: str) -> str:
        """Inputs in 8 bits, with sign where the image is read."""
        found = self.ranges[node.inputs[0]] if node.inputs[0].role is not Role.NEURON else None
        kind = TensorProto.UINT8 if found is None or found.low >= 0 else TensorProto.INT8
        return graph.add("Cast", [value], f"{node.name}/input", to=kind)

    def _along(self, parameter: Tensor, dimensions: int) -> Tensor:
        return super()._along(parameter, dimensions).to(torch.int32)


def geometry(module: Any) -> dict[str, Any]:
    """The attributes of a convolution."""
    kernel = list(module.kernel_size)
    if module.padding == "same":
        total = [dilation * (size - 1) for dilation, size in zip(module.dilation, kernel, strict=True)]
        before = [each // 2 for each in total]
        pads = before + [each - half for each, half in zip(total, before, strict=True)]
    else:
        padding = [0] * len(kernel) if module.padding == "valid" else list(module.padding)
        pads = padding * 2
    return {
        "kernel_shape": kernel,
        "strides": list(module.stride),
        "pads": pads,
        "dilations": list(module.dilation),
        "group": module.groups,
    }


def pool_of(node: Node, shape: tuple[int, ...]) -> tuple[dict[str, Any] | None, int | None]:
    """The attributes of an average pool of samples of this shape, None for a mean over space; and its divisor, if set.

    Raises KeyError for one that has no counterpart.
    """
    module: Any = node.module
    dimensions = len(shape) - 1
    if isinstance(module, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)):
        sizes = [
            list(size) if isinstance(size, tuple) else [size] * dimensions
            for size in (module.kernel_size, module.stride, module.padding)
        ]
        return {
            "kernel_shape": sizes[0],
            "strides": sizes[1],
            "pads": sizes[2] * 2,
            "ceil_mode": int(module.ceil_mode),
            "count_include_pad": int(module.count_include_pad),
        }, getattr(module, "divisor_override", None)
    if module is not None:  # adaptive
        asked = module.output_size if isinstance(module.output_size, tuple) else (module.output_size,) * dimensions
        parts = [size if part is None else part for size, part in zip(shape[1:], asked, strict=True)]
        if any(size % part for size, part in zip(shape[1:], parts, strict=True)):
            raise KeyError(node.name)
        kernel = [size // part for size, part in zip(shape[1:], parts, strict=True)]
        return {"kernel_shape": kernel, "strides": kernel}, None
    if node.source.target in (functional.avg_pool2d, functional.adaptive_avg_pool2d):
        raise KeyError(node.name)
    return None, None


def refusals(source: Source) -> list[str]:
    """What a network has that cannot be exported, by name."""
    known, found = shapes(source.model.program, source.sample), []
    for node in source.model.program.nodes:
        module: Any = node.module
        problem = ""
        if node.role is Role.SYNAPSE:
            if not isinstance(module, SYNAPSES) or getattr(module, "padding_mode", "zeros") != "zeros":
                problem = type(module).__name__
        elif node.role is Role.POOL:
            try:
                shape, after = known[node.inputs[0]], known[node]
                attributes, _ = pool_of(node, shape)
                if attributes is None and (len(shape) == 1 or after != shape[:1]):
                    problem = "a mean over other axes than those of space"
                elif not isinstance(module, POOLS) and attributes is not None:
                    problem = type(module).__name__
            except KeyError:
                problem = "a pool whose windows differ in size, or as a function"
        elif node.role is Role.SHAPE:
            target = node.source.target if module is None else None
            if not (isinstance(module, RESHAPES) or target in RESHAPING or node not in known):
                problem = str(getattr(target, "__name__", target))
        elif node.role is Role.NORM:
            problem = "a batch norm; convert with --batch-norm fold"
        elif node.role not in (
            Role.INPUT, Role.OUTPUT, Role.NEURON, Role.WEIGHTING, Role.SUM, Role.DROPOUT, Role.QUESTION
        ):  # fmt: skip
            problem = node.role.value
        if problem:
            found.append(f"'{node.name}' ({problem})")
    return found


def emit(
    graph: OnnxGraph,
    arithmetic: Float,
    node: Node,
    values: dict[Node, str],
    known: dict[Node, tuple[int, ...]],
    fire: Callable[[Node, str], str],
) -> None:
    """Add what a node becomes; `fire` does so for neurons."""
    inputs = [values[source] for source in node.inputs if source in values]
    if node.role is Role.SYNAPSE:
        values[node] = arithmetic.synapse(graph, node, inputs[0])
    elif node.role is Role.WEIGHTING:
        values[node] = arithmetic.weighting(graph, node, inputs[0])
    elif node.role is Role.POOL:
        values[node] = arithmetic.pool(graph, node, inputs[0], known[node.inputs[0]])
    elif node.role is Role.SUM:
        values[node] = arithmetic.sum(graph, node, inputs if len(inputs) > 1 else inputs * 2)
    elif node.role in (Role.DROPOUT, Role.OUTPUT):
        values[node] = inputs[0]
    elif node.role is Role.NEURON:
        values[node] = fire(node, inputs[0])
    elif node.role is Role.SHAPE and node in known:
        shape = graph.constant(f"{node.name}.shape", np.array([-1, *known[node]], np.int64))
        values[node] = graph.add("Reshape", [inputs[0], shape], node.name)
