"""How the neurons of a layer lie in memory, so that no kernel has to reorder them."""

import math

from torch import Tensor


def reduce_to(values: Tensor, parameter: Tensor) -> Tensor:
    """Sum values `[B, *N]` over the neurons that share a parameter `[]`, `[channels]` or `[*N]`."""
    if parameter.dim() == 0:
        return values.sum()
    return values.sum(dim=[0, *range(2, values.dim())] if parameter.dim() == 1 else 0)


class Layout:
    """How the neurons of a tensor `[T, B, *N]` lie in memory, so that no path has to reorder them."""

    def __init__(self, current: Tensor):
        strides = current.stride()[2:]
        # The features of one sample, from the slowest to the fastest: (0, 1, 2), or (1, 2, 0) in channels-last.
        self.order = sorted(range(len(strides)), key=lambda axis: -strides[axis])
        self.steps = current.shape[0]
        self.sample = tuple(current.shape[2:])

    def rows(self, values: Tensor) -> Tensor:
        """`[T, B, *N]` as `[T, neurons]` in memory order; a tensor that is constant in time gives one row."""
        if values.shape[0] > 1 and values.stride(0) == 0:
            values = values[:1]
        return values.permute(0, 1, *(axis + 2 for axis in self.order)).reshape(values.shape[0], -1).contiguous()

    def row(self, values: Tensor) -> Tensor:
        """`[B, *N]` as `[neurons]` in memory order."""
        return self.rows(values.unsqueeze(0))[0]

    def restore(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`: `[T, neurons]` as a view `[T, B, *N]`."""
        permuted = rows.view(rows.shape[0], -1, *(self.sample[axis] for axis in self.order))
        back = [2 + self.order.index(axis) for axis in range(len(self.order))]
        return permuted.permute(0, 1, *back)

    def group(self, parameter: Tensor) -> tuple[Tensor, int]:
        """A parameter as a flat tensor, and how many neighbouring neurons share each of its entries."""
        if parameter.dim() == 0:
            return parameter.view(1), 1
        if parameter.dim() == 1:
            return parameter, math.prod(self.sample[axis] for axis in self.order[self.order.index(0) + 1 :])
        return parameter.permute(self.order).reshape(-1), 1

    def ungroup(self, values: Tensor, parameter: Tensor) -> Tensor:
        """The inverse of `group`: one value for each entry of a parameter, in the parameter's own shape."""
        if parameter.dim() < 2:
            return values.view(parameter.shape)
        back = [self.order.index(axis) for axis in range(len(self.order))]
        return values.view([self.sample[axis] for axis in self.order]).permute(back)

    def reduce(self, per_neuron: Tensor, parameter: Tensor) -> Tensor:
        """Sum gradients `[neurons]` over the neurons that share a parameter."""
        return reduce_to(self.restore(per_neuron.unsqueeze(0))[0], parameter)
