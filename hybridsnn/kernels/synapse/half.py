"""Synapses that learn in half precision: PyTorch's dense operations, with weights cast once a run."""

from typing import Any

import torch
from torch import Tensor, nn

from hybridsnn.kernels.synapse import patches
from hybridsnn.kernels.synapse.learning import LearningSynapse, add_gradient


def supports(module: nn.Module, values: Tensor) -> bool:
    """Whether a module runs in half precision on `values`: not transposed, padded with a number of zeros if at all."""
    zeros = getattr(module, "padding_mode", "zeros") == "zeros" and not isinstance(getattr(module, "padding", 0), str)
    device = values.device.type
    forward = not getattr(module, "transposed", False)
    return zeros and forward and torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device).itemsize == 2


class HalfSynapse(LearningSynapse):
    """A synapse whose values and errors are in half precision, and whose gradients are summed in that of its weight.

    Args:
        module: that `supports` allows.
        values: what it will be run on.
    """

    def __init__(self, module: nn.Module, values: Tensor):
        super().__init__(module)
        self.dtype = torch.get_autocast_dtype(values.device.type)
        self.half = self.weight.detach().to(self.dtype)
        self.half_bias = None if self.bias is None else self.bias.detach().to(self.dtype)

    def forward(self, values: Tensor) -> Tensor:
        module: Any = self.module
        values = values.to(self.dtype)
        if isinstance(module, nn.Linear):
            return nn.functional.linear(values, self.half, self.half_bias)
        if patches.supports(module, values):
            return patches.convolution(values, self.half, self.half_bias)
        output: Tensor = module._conv_forward(values, self.half, self.half_bias)
        return output

    def pass_on(self, error: Tensor, trace: Tensor, needs_input: bool) -> Tensor | None:
        module: Any = self.module
        learns = self.weight.requires_grad
        error, trace = error.to(self.dtype), trace.to(self.dtype)
        if isinstance(module, nn.Linear):
            if learns:
                add_gradient(self.weight, error.flatten(0, -2).t() @ trace.flatten(0, -2))
            return error @ self.half if needs_input else None
        if patches.supports(module, trace):
            if learns:
                add_gradient(self.weight, patches.weight_gradient(trace, error, self.half))
            return patches.input_gradient(error, self.half) if needs_input else None
        passed, gradient, _ = torch.ops.aten.convolution_backward(
            error, trace, self.half, None, module.stride, module.padding, module.dilation,
            False, [0] * len(module.stride), module.groups, [needs_input, learns, False],
        )  # fmt: skip
        if learns:
            add_gradient(self.weight, gradient)
        return passed if needs_input else None
