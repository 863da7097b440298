"""Between which numbers the values of a program can lie, whatever its input: proofs that integers do not overflow."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybridsnn.program.graph import Node, Program
from hybridsnn.program.operations import Role
from hybridsnn.program.passes import shapes

EXACT = 2**24  # float32 holds every integer up to it


@dataclass(frozen=True)
class Range:
    """The least and the largest value of a node, or of a membrane in any step.

    Attributes:
        largest_sum: bound of every partial sum on the way to it, in any order.
    """

    low: float
    high: float
    largest_sum: float

    @property
    def extent(self) -> float:
        """The largest absolute value that occurs, sums on the way included."""
        return max(abs(self.low), abs(self.high), self.largest_sum)


def ranges(program: Program, sample: tuple[int, ...], timesteps: int, largest_input: float) -> dict[Node, Range]:
    """The range of each value of a network of integrate-and-fire neurons without leak; at neurons, of their membranes.

    Let the current of a neuron lie between -N and P, its threshold be k and its initial potential v. A reset leaves at
    least 0, so after t steps no membrane is below min(v, 0) - t N. What is left after a step is below k, or by k less
    than it was, so before the reset of step t no membrane is above max(v, k) + (t - 1) max(P - k, 0) + P. The readout
    lies between t times the bounds of its current. All of that per neuron, from its own weights and borders.

    Args:
        sample: the shape of a frame of one image.
        timesteps: T.
        largest_input: the largest absolute value of the input.
    """
    known = shapes(program, sample)
    bounds: dict[Node, tuple[Tensor, Tensor]] = {}
    found: dict[Node, Range] = {}
    for node in program.nodes:
        if node.role is Role.INPUT:
            edge = torch.full((1, *sample), float(largest_input), dtype=torch.float64)
            low, high, most = -edge, edge, float(largest_input)
        elif node.role is Role.QUESTION or node.role is Role.ATTRIBUTE:
            continue
        elif node.role is Role.NEURON:
            low, high = _membrane(node, *bounds[node.inputs[0]], timesteps)
            found[node] = Range(float(low.min()), float(high.max()), 0.0)
            bounds[node] = (
                torch.zeros(1, *known[node], dtype=torch.float64),
                torch.ones(1, *known[node], dtype=torch.float64),
            )
            continue
        elif node.role is Role.OUTPUT:
            low, high = (timesteps * bound for bound in bounds[node.inputs[0]])
            most = 0.0
        else:
            low, high, most = _propagated(node, bounds, known)
        bounds[node] = low, high
        found[node] = Range(float(low.min()), float(high.max()), most)
    return found


def _membrane(node: Node, low: Tensor, high: Tensor, timesteps: int) -> tuple[Tensor, Tensor]:
    assert node.module is not None
    module: Any = node.module
    like = low.unsqueeze(0)
    threshold = _along(module.threshold.detach().cpu().double(), low)
    start = module.initial_state(like.to(torch.float64)).membrane.detach().cpu().double()
    least = start.clamp(max=0) + timesteps * low.clamp(max=0)
    most = torch.maximum(start, threshold) + (timesteps - 1) * (high - threshold).clamp(min=0) + high.clamp(min=0)
    return least, most


def _along(parameter: Tensor, values: Tensor) -> Tensor:
    return parameter.view(-1, *[1] * (values.dim() - 2)) if parameter.dim() == 1 else parameter


def _propagated(
    node: Node, bounds: dict[Node, tuple[Tensor, Tensor]], known: dict[Node, tuple[int, ...]]
) -> tuple[Tensor, Tensor, float]:
    """Bounds of what a node without time makes, and of its partial sums."""

    def run(which: int) -> Any:
        args, kwargs = node.arguments(lambda source: bounds[source][which] if source in bounds else len(known))
        return node.call(args, kwargs)

    if node.role in (Role.SYNAPSE, Role.WEIGHTING):
        assert node.module is not None
        module = node.module
        low, high = bounds[node.inputs[0]]
        weight = module.get_parameter("weight").detach().cpu().double()
        positive, negative = weight.clamp(min=0), weight.clamp(max=0)
        bias = getattr(module, "bias", None)
        constant = None if bias is None else bias.detach().cpu().double()

        def with_weight(part: Tensor, values: Tensor, with_bias: bool) -> Tensor:
            given = {"weight": part}
            if constant is not None:
                given["bias"] = constant if with_bias else torch.zeros_like(constant)
            made: Tensor = torch.func.functional_call(module, given, (values,))
            return made

        most = with_weight(weight.abs(), torch.maximum(-low, high), False)
        if constant is not None:
            most = most + _along(constant.abs(), most)
        return (
            with_weight(positive, low, True) + with_weight(negative, high, False),
            with_weight(positive, high, True) + with_weight(negative, low, False),
            float(most.max()),
        )
    if node.role is Role.DROPOUT:
        low, high = bounds[node.inputs[0]]
    else:
        low, high = run(0), run(1)
    return low, high, max(float(low.abs().max()), float(high.abs().max()))
