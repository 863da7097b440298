"""Synapses whose weights learn from the error of their output and the trace of their input, step after step."""

from typing import Any

import torch
from torch import Tensor, nn

from hybridsnn.kernels.synapse.choice import transmit


class LearningSynapse:
    """A synapse during one run; what each step contributes is added to `.grad` of its weight and bias.

    Args:
        module: a convolution or linear layer.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.weight = module.get_parameter("weight")
        self.bias = getattr(module, "bias", None)

    def forward(self, values: Tensor) -> Tensor:
        """What the module makes of `values`."""
        return transmit(self.module, values)

    def backward(self, error: Tensor, trace: Tensor, unit: float, needs_input: bool) -> Tensor | None:
        """Learn from one step.

        Args:
            error: gradient of the loss with respect to the output.
            trace, unit: of the input, and of an input that is always 1.
            needs_input: whether anything learns behind the input.

        Returns:
            the error of the input, if it is needed.
        """
        if self.bias is not None and self.bias.requires_grad:
            channel = error.dim() - 1 if isinstance(self.module, nn.Linear) else 1
            others = [axis for axis in range(error.dim()) if axis != channel]
            add_gradient(self.bias, error.sum(others) * unit)
        return self.pass_on(error, trace.to(error.dtype), needs_input)

    def pass_on(self, error: Tensor, trace: Tensor, needs_input: bool) -> Tensor | None:
        """Add to the gradient of the weight, and give the error of the input if it is needed."""
        raise NotImplementedError

    def finish(self) -> None:
        """Called once, after the last step."""


def add_gradient(parameter: Tensor, gradient: Tensor) -> None:
    """Add to `.grad` of a parameter, which lies in memory as the parameter does."""
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter).copy_(gradient) if _differs(gradient, parameter) else gradient
    else:
        parameter.grad.add_(gradient)


def _differs(gradient: Tensor, parameter: Tensor) -> bool:
    return gradient.dtype != parameter.dtype or gradient.stride() != parameter.stride()


class Transmit(torch.autograd.Function):
    """One step of a synapse; errors go through it as through any other function."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None, synapse: LearningSynapse,
                trace: Tensor, unit: float) -> Tensor:  # fmt: skip
        # Weight and bias are arguments so that the output counts as depending on them.
        ctx.synapse, ctx.trace, ctx.unit = synapse, trace, unit
        return synapse.forward(values)

    @staticmethod
    def backward(ctx: Any, *errors: Any) -> tuple[Tensor | None, ...]:
        return ctx.synapse.backward(errors[0], ctx.trace, ctx.unit, ctx.needs_input_grad[0]), *[None] * 5


class Scale(torch.autograd.Function):
    """A parameter whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None
