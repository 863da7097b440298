"""Passes over a program without time: the analogue network, and the shapes of its values."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hybridsnn.neurons import TemporalModule
from hybridsnn.program.graph import Node, Program, attribute
from hybridsnn.program.operations import Role


@torch.no_grad()
def analogue(
    program: Program,
    images: Tensor,
    observe: Callable[[Node, Any], None],
    activation: Callable[[Node, Tensor], Tensor] | None = None,
) -> None:
    """Run a program as the ANN it came from: neurons are ReLUs, dropout does nothing.

    Args:
        images: `[B, ...]`; of the "meta" device, nothing is computed but shapes.
        observe: called with each node and its value, `[B, ...]` if it is a tensor.
        activation: in the place of the ReLU of a layer of neurons, with its ceiling if it has one.
    """
    values: dict[Node, Any] = dict.fromkeys(program.inputs, images)
    for node in program.nodes:
        if node.role is Role.ATTRIBUTE:
            values[node] = attribute(program.body, node.name).to(images.device)
        elif node.role not in (Role.INPUT, Role.OUTPUT):
            values[node] = _analogue_value(node, values, activation)
            observe(node, values[node])
        for source in program.freed.get(node, ()):
            values.pop(source, None)


def _analogue_value(node: Node, values: dict[Node, Any], activation: Callable[[Node, Tensor], Tensor] | None) -> Any:
    args, kwargs = node.arguments(values.__getitem__)
    if node.role is Role.NEURON and activation is not None:
        return activation(node, args[0])
    if isinstance(node.module, TemporalModule):
        return node.module.analogue(args[0])
    if node.role is Role.DROPOUT:
        return args[0]
    first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    if node.module is not None and first is not None and first.is_meta:
        tensors = {**dict(node.module.named_parameters()), **dict(node.module.named_buffers())}
        weightless = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
        return torch.func.functional_call(node.module, weightless, args, kwargs)
    return node.call(args, kwargs)


def shapes(program: Program, sample: tuple[int, ...]) -> dict[Node, tuple[int, ...]]:
    """The shape of each node's value for one sample, without the batch; computed once for each shape of a sample."""
    known = program.shapes_of.get(sample)
    if known is None:
        known = {node: sample for node in program.inputs}

        def note(node: Node, value: Any) -> None:
            if isinstance(value, Tensor):
                known[node] = tuple(value.shape[1:])

        parameter = next(program.body.parameters(), torch.zeros(()))
        analogue(program, torch.empty(1, *sample, dtype=parameter.dtype, device="meta"), note)
        program.shapes_of[sample] = known
    return known
