"""A calibration of the weights of each layer without labels."""

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from hybridsnn.conversion.corrections.base import Correction
from hybridsnn.neurons import along_channels

if TYPE_CHECKING:
    from hybridsnn.conversion.balancers.sweep import Layer

SHARES = (1.0, 0.5, 0.25)  # of the change that is tried, the first that makes the error smaller is kept


class GradientDescent(Correction):
    """Fits the weights and the bias before a layer to the activations of the ANN, on the layer's own input.

    Minimises the mean of `(threshold * (q(W x + b) + u) - a)^2`, where x is the mean over T of what the balanced layers
    before send, a the activation of the ANN, and `q(z) = clip(floor(z T / threshold + v), 0, T) / T` the rate of a
    neuron that starts from the potential `v * threshold` (after Li et al., ICML 2021). u is the part of the rate that
    comes from the order of spikes, taken as it is with the weights at the start, so that there the error is that of the
    simulation. Adam with a cosine to 0; the floor is passed straight through by gradients. The new weights, or a half
    or a quarter of their change, stay only if the squared error of the simulated layer falls on all calibration images.

    Only the synapse that `bias_synapse` finds is fitted; the rest of a current, such as that of a shortcut, is given.
    """

    summary: ClassVar[str] = (
        "weights before each layer by gradient descent on what its spikes stand for, without labels"
    )
    biases: ClassVar[bool] = True
    calibration_images: ClassVar[int] = 1024

    descent_iterations: int = Field(500, gt=0, description="Number of updates of the weights of each layer.")
    descent_learning_rate: float = Field(
        3e-3,
        gt=0,
        description="Initial learning rate of Adam, in units of the root mean square of a layer's weights; for biases, "
        "of its threshold.",
    )
    descent_batch_size: int = Field(32, gt=0, description="Number of images in an update of the weights.")

    def correct(self, layer: "Layer") -> None:
        if layer.synapse is None:
            return
        parameters = [layer.synapse.get_parameter(name) for name in ("weight", "bias")]
        before, error = [parameter.detach().clone() for parameter in parameters], layer.squared_error()
        after = self.fit(layer, layer.synapse)
        for share in (*SHARES, 0.0):
            for parameter, old, new in zip(parameters, before, after, strict=True):
                parameter.copy_(torch.lerp(old, new, share) if share else old)
            layer.forget()
            if share and layer.squared_error() < error:
                return

    def fit(self, layer: "Layer", synapse: nn.Module) -> tuple[Tensor, Tensor]:
        """The weights and biases that minimise the error of the mean input; the synapse is not changed."""
        inputs, means = torch.cat([*layer.inputs()]), torch.cat([current.mean(0) for current in layer.currents()])
        rest = means - synapse(inputs)  # the part of the current that other paths bring
        targets = torch.cat(layer.targets)
        order = layer.indices.argsort().to(inputs.device)  # so that minibatches are the same for any order of images
        threshold = along_channels(layer.threshold, targets).to(targets)
        start = layer.neuron.initial_potential
        potential = along_channels(start, targets).to(targets) if isinstance(start, Tensor) else start
        steps, generator = layer.timesteps, torch.Generator().manual_seed(layer.seed)
        unit = threshold / steps
        counts = torch.cat([layer.counts(current) for current in layer.currents()])
        changeable = (counts > 0) & (counts < steps)
        uneven = counts - (means / unit + potential).floor().clamp(0, steps)
        with torch.enable_grad():
            weight, bias = (synapse.get_parameter(name).detach().clone() for name in ("weight", "bias"))
            groups = [
                {"params": [weight.requires_grad_()], "start": float(weight.detach().square().mean().sqrt())},
                {"params": [bias.requires_grad_()], "start": float(layer.threshold.mean())},
            ]
            optimiser = torch.optim.Adam(groups, fused=True)
            batch: list[Tensor] = []
            for number in range(self.descent_iterations):
                if not batch:
                    batch = list(torch.randperm(len(order), generator=generator).split(self.descent_batch_size))
                chosen = order[batch.pop().to(order.device)]
                factor = 0.5 * (1 + math.cos(math.pi * number / self.descent_iterations))
                for group in optimiser.param_groups:
                    group["lr"] = group["start"] * self.descent_learning_rate * factor
                values = {"weight": weight, "bias": bias}
                current = torch.func.functional_call(synapse, values, (inputs[chosen],)) + rest[chosen]
                optimiser.zero_grad()
                with torch.no_grad():
                    level = current * (steps / threshold) + potential
                    error = unit * (level.floor().clamp(0, steps) + uneven[chosen]) - targets[chosen]
                    error *= (level > 0) & (level < steps) | changeable[chosen]
                current.backward(error / error.numel())  # the floor passed straight through
                optimiser.step()
        return weight.detach(), bias.detach()
