"""NIR: the network of integers as a graph, and what NIR's importers really make of it.

NIR's IF neuron resets to a value, fires strictly above its threshold, and starts at 0; ours subtracts the threshold,
fires at it, and starts where it is told. So a file alone cannot say what our network is. With integers, thresholds k
and initial potentials floor(f k) + 1/2 (see `hybridsnn.conversion.integers`), no membrane ever touches a threshold, and
any tool that subtracts gives exactly our spikes, as long as sums stay below 2^23, once it is told to subtract and where
to start.
"""

import io
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from hybridsnn.errors import ConversionError
from hybridsnn.exporters.base import Export, Exporter, Source
from hybridsnn.exporters.comparison import Verdict
from hybridsnn.exporters.nir_targets import verdicts
from hybridsnn.program.graph import Node
from hybridsnn.program.operations import Role
from hybridsnn.program.passes import shapes
from hybridsnn.program.ranges import EXACT, ranges

FILE = "network.nir"
HALF = 0.5  # what initial potentials lie above integers


class Nir(Exporter):
    """A graph of convolutions, linear layers and IF neurons; pools are convolutions of ones, sums are edges."""

    summary: ClassVar[str] = "NIR graph of the network of integers, for chips and other simulators"
    needs: ClassVar[tuple[str, ...]] = ("nir",)
    extra: ClassVar[str] = "nir"
    integers: ClassVar[bool] = True
    grid: ClassVar[str] = "layer"

    def export(self, source: Source) -> Export:
        """See `Exporter`."""
        found = ranges(source.model.program, source.sample, source.timesteps, source.largest_input)
        worst = max(found, key=lambda node: found[node].extent)
        if found[worst].extent >= EXACT // 2:
            raise ConversionError(
                f"export: '{worst.name}' may reach {found[worst].extent:,.0f}, must stay below {EXACT // 2:,} for NIR, "
                "whose tools compute in float32; take fewer --weight-bits or time steps"
            )
        graph, problems = _graph(source)
        if problems:
            raise ConversionError(f"export: NIR has no counterpart of {', '.join(problems)}")
        import nir

        stream = io.BytesIO()
        nir.write(stream, graph)
        starts = {_name(node): _start(node) for node in source.model.program.neurons}
        return Export(
            {FILE: stream.getvalue()},
            {
                "initial_potentials": starts,
                "how": "feed the integer frames at every step and sum the output; neurons have to subtract their "
                "threshold, fire at most once a step, and start at initial_potentials",
            },
        )

    def check(self, source: Source, export: Export, frames: Sequence[Tensor], tolerance: float) -> list[Verdict]:
        """See `Exporter`: each simulator that is installed, the file alone and then with patches; onnxruntime."""
        names = {node.name: _name(node) for node in source.model.program.neurons}
        starts = {_name(node): _start(node) for node in source.model.program.neurons}
        return verdicts(source, export.files[FILE], frames, names, starts)


def _name(node: Node) -> str:
    return node.name.replace(".", "_")


def _start(node: Node) -> float:
    """Where the membranes of a layer start."""
    module: Any = node.module
    return float(module.start.flatten()[0]) + HALF


def _graph(source: Source) -> tuple[Any, list[str]]:
    """The graph, and what could not be put into it."""
    import nir

    program = source.model.program
    known = shapes(program, source.sample)
    nodes: dict[str, Any] = {"input": nir.Input(input_type={"input": np.array(source.sample)})}
    edges: list[tuple[str, str]] = []
    problems: list[str] = []
    origins: dict[Node, list[str]] = {program.inputs[0]: ["input"]}
    for node in program.nodes:
        if node.role in (Role.INPUT, Role.QUESTION, Role.ATTRIBUTE):
            continue
        inputs = [name for value in node.inputs if value in origins for name in origins[value]]
        shape = known[node.inputs[0]]
        made: Any = None
        if node.role is Role.OUTPUT:
            nodes["output"] = nir.Output(output_type={"output": np.array(shape)})
            edges += [(name, "output") for name in inputs]
            continue
        if node.role in (Role.SUM, Role.DROPOUT) or (node.role is Role.SHAPE and known.get(node) == shape):
            origins[node] = inputs
            if len(set(inputs)) < len(inputs):
                problems.append(f"'{node.name}' (the same value added twice)")
            continue
        if node.role is Role.SYNAPSE:
            made = _synapse(node.module, shape)
        elif node.role is Role.WEIGHTING:
            assert node.module is not None
            made = _diagonal(node.module.get_parameter("weight"), shape)
        elif node.role is Role.POOL and isinstance(node.module, nn.AvgPool2d):
            made = _summing(node.module, shape)
        elif node.role is Role.SHAPE and len(known[node]) == 1:
            made = nir.Flatten(input_type={"input": np.array(shape)}, start_dim=-len(shape), end_dim=-1)
        elif node.role is Role.NEURON:
            made = _neurons(node.module, shape)
        if made is None:
            problems.append(f"'{node.name}' ({type(node.module).__name__ if node.module is not None else node.name})")
            origins[node] = []
            continue
        nodes[_name(node)] = made
        edges += [(name, _name(node)) for name in inputs]
        origins[node] = [_name(node)]
    return (None if problems else nir.NIRGraph(nodes, edges, type_check=False)), problems


def _synapse(module: Any, shape: tuple[int, ...]) -> Any:
    import nir

    weight = module.weight.detach().float()
    bias = torch.zeros(len(weight)) if module.bias is None else module.bias.detach().float()
    if isinstance(module, nn.Linear):
        return nir.Affine(weight=weight.numpy(), bias=bias.numpy()) if len(shape) == 1 else None
    if not isinstance(module, nn.Conv2d) or isinstance(module.padding, str) or module.padding_mode != "zeros":
        return None
    if module.groups > 1:  # importers differ about groups: written out with zeros
        dense = torch.zeros(len(weight), module.in_channels, *weight.shape[2:])
        rows, columns = len(weight) // module.groups, weight.shape[1]
        for group in range(module.groups):
            dense[group * rows : (group + 1) * rows, group * columns : (group + 1) * columns] = weight[
                group * rows : (group + 1) * rows
            ]
        weight = dense
    return _convolution(weight, bias, shape, module.stride, module.padding, module.dilation)


def _convolution(
    weight: Tensor, bias: Tensor, shape: tuple[int, ...], stride: Any, padding: Any, dilation: Any = (1, 1)
) -> Any:
    import nir

    return nir.Conv2d(
        input_shape=tuple(shape[1:]),
        weight=weight.numpy(),
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
        groups=1,
        bias=bias.numpy(),
    )


def _diagonal(weight: Tensor, shape: tuple[int, ...]) -> Any:
    """A weighting as a layer from each channel to itself."""
    import nir

    matrix = torch.diag(weight.detach().float().flatten().expand(shape[0]))
    if len(shape) == 1:
        return nir.Affine(weight=matrix.numpy(), bias=np.zeros(shape[0], np.float32))
    if len(shape) != 3:
        return None
    return _convolution(matrix[:, :, None, None], torch.zeros(shape[0]), shape, (1, 1), (0, 0))


def _summing(pool: nn.AvgPool2d, shape: tuple[int, ...]) -> Any:
    """A pool that sums as a convolution of ones."""
    kernel, stride, padding = (
        (size, size) if isinstance(size, int) else tuple(size) for size in (pool.kernel_size, pool.stride, pool.padding)
    )
    weight = torch.eye(shape[0])[:, :, None, None].repeat(1, 1, *kernel)
    return _convolution(weight, torch.zeros(shape[0]), shape, stride, padding)


def _neurons(module: Any, shape: tuple[int, ...]) -> Any:
    """Neurons with one threshold and one initial potential, which is what importers take; None for others."""
    import nir

    threshold, start = module.threshold.detach(), module.start
    if module.reset != "soft" or threshold.unique().numel() > 1 or start.unique().numel() > 1:
        return None
    full = np.full(shape, float(threshold.flatten()[0]), np.float32)
    return nir.IF(r=np.ones(shape, np.float32), v_threshold=full, v_reset=np.zeros(shape, np.float32))
