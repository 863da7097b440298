"""The ways in which synapses learn, and the choice among them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hybridsnn.kernels.synapse import choice, event_driven_gradients, half, winograd
from hybridsnn.kernels.synapse.learning import LearningSynapse, add_gradient


class Linear(LearningSynapse):
    """A linear layer."""

    def pass_on(self, error: Tensor, trace: Tensor, needs_input: bool) -> Tensor | None:
        if self.weight.requires_grad:
            rows, columns = error.flatten(0, -2), trace.flatten(0, -2)
            if self.weight.is_contiguous() and choice.event_driven_gradient_pays(self.module, columns):
                if self.weight.grad is None:
                    self.weight.grad = torch.zeros_like(self.weight)
                event_driven_gradients.linear_weight_gradient(columns, rows, self.weight.grad)
            elif self.weight.grad is not None and self.weight.grad.dtype == error.dtype:
                self.weight.grad.addmm_(rows.t(), columns)  # the sum without a second tensor of the weight's size
            else:
                add_gradient(self.weight, rows.t() @ columns)
        return error @ self.weight.to(error.dtype) if needs_input else None


class Convolution(LearningSynapse):
    """Any convolution."""

    def pass_on(self, error: Tensor, trace: Tensor, needs_input: bool) -> Tensor | None:
        module: Any = self.module
        weight = self.weight.detach().to(error.dtype)
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            # Whatever it does around its edges, it is linear, so its own backward pass says how errors go.
            with torch.enable_grad():
                values, kernel = trace.detach().requires_grad_(), weight.requires_grad_()
                parameters = {"weight": kernel}
                if self.bias is not None:
                    parameters["bias"] = self.bias.detach().to(error.dtype)
                result = torch.func.functional_call(module, parameters, (values,))
                error_of_input, gradient = torch.autograd.grad(result, (values, kernel), error)
        else:
            backward: Callable[..., Any] = torch.ops.aten.convolution_backward
            error_of_input, gradient, _ = backward(
                error, trace, weight, None, module.stride, module.padding, module.dilation,
                module.transposed, module.output_padding, module.groups,
                [needs_input, self.weight.requires_grad, False],
            )  # fmt: skip
        if self.weight.requires_grad:
            add_gradient(self.weight, gradient)
        return error_of_input


class FastConvolution(LearningSynapse):
    """A convolution that the compiled kernel supports; its weight is prepared once, and its gradient merged once."""

    def __init__(self, module: nn.Module, values: Tensor):
        super().__init__(module)
        self.plan = choice.Plan.of(module, values)
        planned = None if self.plan is None else self.plan.tiling
        tiling = planned or winograd.tiling_for(values)
        self.prepared = winograd.transform_weight(self.weight, tiling)
        self.gradient = winograd.WeightGradient(self.weight, tiling) if self.weight.requires_grad else None

    def forward(self, values: Tensor) -> Tensor:
        assert self.plan is not None
        return self.plan.run(self.module, values, self.prepared)

    def pass_on(self, error: Tensor, trace: Tensor, needs_input: bool) -> Tensor | None:
        if self.gradient is None:
            return winograd.input_gradient(error, self.prepared) if needs_input else None
        if needs_input:
            return self.gradient.add_and_pass(trace, error, self.prepared)
        self.gradient.add(trace, error)
        return None

    def finish(self) -> None:
        if self.gradient is not None:
            add_gradient(self.weight, self.gradient.result())


class ConvolutionInBlocks(LearningSynapse):
    """A convolution that the compiled kernel supports, its weight prepared anew in each call, a few filters at a time.

    For calls with many samples, over which that is quickly done: it takes no memory of the size of the weight.
    """

    def pass_on(self, error: Tensor, trace: Tensor, needs_input: bool) -> Tensor | None:
        learns = self.weight.requires_grad
        if learns and choice.event_driven_gradient_pays(self.module, trace):
            add_gradient(self.weight, event_driven_gradients.convolution_weight_gradient(trace, error))
            learns = False
        tiling = winograd.tiling_for(trace)
        passed: Tensor | None = None
        for filters in choice.blocks(self.weight):
            weight, errors = self.weight[filters], error[:, filters]
            gradient = winograd.WeightGradient(weight, tiling) if learns else None
            if needs_input:
                prepared = winograd.transform_weight(weight, tiling)
                if gradient is not None:
                    share = gradient.add_and_pass(trace, errors, prepared)
                else:
                    share = winograd.input_gradient(errors, prepared)
                passed = share if passed is None else passed.add_(share)
            elif gradient is not None:
                gradient.add(trace, errors)
            if gradient is not None:
                if self.weight.grad is None:
                    self.weight.grad = torch.zeros_like(self.weight)
                self.weight.grad[filters].add_(gradient.result())
        return passed


def learning_synapse(module: Any, values: Tensor, *, many: bool = False) -> LearningSynapse:
    """The fastest way to run a module on such `values`.

    Args:
        many: whether there are few calls, with many samples each.
    """
    if half.supports(module, values):
        return half.HalfSynapse(module, values)
    if isinstance(module, nn.Linear):
        return Linear(module)
    if choice.filters_fast(module, values):
        return ConvolutionInBlocks(module) if many else FastConvolution(module, values)
    return Convolution(module)
