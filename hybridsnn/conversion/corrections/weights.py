"""A correction of the weights before a layer, for the inputs that it really gets."""

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, TypeGuard

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from hybridsnn.conversion.corrections.base import Correction

if TYPE_CHECKING:
    from hybridsnn.conversion.balancers.sweep import Layer, Readout

SMALLEST = 1e-9  # penalty, so that inputs that are always 0 can be solved for


class Weights(Correction):
    """Changes weights and biases so that the mean current of each layer comes nearest to the activations of the ANN.

    Least squares on the mean over time of what the synapse gets from the layers before, with a penalty on changes
    (ridge regression); the readout too, against the outputs of the ANN. Where the ANN has an activation of 0, a current
    below 0 is no error: the solution is repeated with the currents that it gives. A layer whose current comes from no
    linear layer or two-dimensional convolution of its own is left as it is.
    """

    summary: ClassVar[str] = "weights by least squares on what each synapse really gets, before thresholds"
    biases: ClassVar[bool] = True
    calibration_images: ClassVar[int] = 1024

    weights_ridge: float = Field(
        0.01, gt=0, description="Penalty on changes of weights, over the mean square of the inputs."
    )
    weights_rounds: int = Field(3, gt=0, description="How many times the solution is repeated.")

    def prepare(self, layer: "Layer") -> None:
        self._fit(layer, lambda target, current: (target > 0) | (current > 0))

    def correct_readout(self, readout: "Readout") -> None:
        self._fit(readout, lambda target, current: torch.ones_like(target, dtype=torch.bool))

    def _fit(self, seen: "Readout", wrong: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Change the synapse; `wrong` says of which targets and mean currents the difference is an error."""
        synapse = seen.synapse
        if not _is_known(synapse):
            return
        weight, bias = synapse.get_parameter("weight"), synapse.get_parameter("bias")
        groups = getattr(synapse, "groups", 1)
        means = [current.mean(0) for current in seen.currents()]
        square: Tensor | float = 0.0
        for values in seen.inputs():
            patches = _patches(synapse, values, groups)
            square = square + (patches @ patches.mT).double()
        assert isinstance(square, Tensor)  # there are images
        penalty = self.weights_ridge * square.diagonal(dim1=1, dim2=2)[:, :-1].mean(1, keepdim=True)
        damping = penalty.clamp(min=SMALLEST).expand(groups, square.shape[1]).clone()
        damping[:, -1] = SMALLEST  # the bias is free
        factor = torch.linalg.cholesky(square + torch.diag_embed(damping))
        change = square.new_zeros(groups, square.shape[1], len(weight) // groups)
        for _ in range(self.weights_rounds):
            product: Tensor | float = 0.0
            for values, mean, target in zip(seen.inputs(), means, seen.targets, strict=True):
                patches = _patches(synapse, values, groups)
                now = mean + _folded(patches.mT @ change.to(patches), mean)
                error = torch.where(wrong(target, now), target - now, 0)
                product = product + (patches @ _unfolded(error, groups)).double()
            change = change + torch.cholesky_solve(product - damping.unsqueeze(2) * change, factor)
        weight.add_(change[:, :-1].mT.reshape(weight.shape).to(weight))
        bias.add_(change[:, -1].flatten().to(bias))
        seen.forget()


def _is_known(synapse: nn.Module | None) -> TypeGuard[nn.Linear | nn.Conv2d]:
    if type(synapse) is nn.Conv2d:
        return synapse.padding_mode == "zeros" and not isinstance(synapse.padding, str)
    return type(synapse) is nn.Linear


def _patches(synapse: nn.Linear | nn.Conv2d, values: Tensor, groups: int) -> Tensor:
    """What each output of a synapse is computed from, and a 1 for the bias: `[groups, inputs + 1, outputs]`."""
    if isinstance(synapse, nn.Linear):
        columns = values.flatten(0, -2).mT.unsqueeze(0)
    else:
        assert not isinstance(synapse.padding, str)
        found = functional.unfold(values, synapse.kernel_size, synapse.dilation, synapse.padding, synapse.stride)
        columns = found.unflatten(1, (groups, -1)).permute(1, 2, 0, 3).flatten(2)
    return torch.cat([columns, torch.ones_like(columns[:, :1])], 1)


def _unfolded(values: Tensor, groups: int) -> Tensor:
    """Currents `[B, channels, *N]`, or `[B, ..., features]` of a linear layer, as `[groups, outputs, channels]`."""
    if values.dim() != 4:
        return values.flatten(0, -2).unsqueeze(0)
    return values.unflatten(1, (groups, -1)).permute(1, 0, 3, 4, 2).flatten(1, 3)


def _folded(values: Tensor, like: Tensor) -> Tensor:
    """The reverse of `_unfolded`."""
    if like.dim() != 4:
        return values.view(like.shape)
    images, _, height, width = like.shape
    return values.unflatten(1, (images, height, width)).permute(1, 0, 4, 2, 3).flatten(1, 2)
