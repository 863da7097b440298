"""STOP-W on VGG-11 written the straightforward way in PyTorch: the yardstick of `stop_speed.py`."""

import torch
from torch import Tensor, nn
from torch.nn import functional

PLAN = (64, "A", 128, "A", 256, 256, "A", 512, 512, "A", 512, 512, "A")


class TracedConvolution(torch.autograd.Function):
    """A convolution that saves the trace of its input for the gradient of its weight."""

    @staticmethod
    def forward(ctx, values, trace, weight):
        ctx.save_for_backward(trace, weight)
        return functional.conv2d(values, weight, padding=1)

    @staticmethod
    def backward(ctx, error):
        trace, weight = ctx.saved_tensors
        values = None
        if ctx.needs_input_grad[0]:
            values = nn.grad.conv2d_input(trace.shape, weight, error, padding=1)
        return values, None, nn.grad.conv2d_weight(trace, weight.shape, error, padding=1)


class Spike(torch.autograd.Function):
    """A spike at or above 0; backward, exp(-|distance|)."""

    @staticmethod
    def forward(ctx, distance):
        ctx.save_for_backward(distance)
        return (distance >= 0).to(distance.dtype)

    @staticmethod
    def backward(ctx, error):
        (distance,) = ctx.saved_tensors
        return error * torch.exp(-distance.abs())


class Layer(nn.Module):
    """Convolution, batch norm, leaky neurons with a soft reset."""

    def __init__(self, inputs: int, outputs: int, leak: float, threshold: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 3, 3))
        nn.init.kaiming_normal_(self.weight)
        self.norm = nn.BatchNorm2d(outputs)
        self.leak, self.threshold = leak, threshold
        self.reset()

    def reset(self) -> None:
        self.trace = self.membrane = None

    def forward(self, values: Tensor) -> Tensor:
        with torch.no_grad():
            self.trace = values if self.trace is None else self.leak * self.trace + values
        current = self.norm(TracedConvolution.apply(values, self.trace, self.weight))
        membrane = current if self.membrane is None else self.leak * self.membrane + current
        spikes = Spike.apply(membrane - self.threshold)
        self.membrane = (membrane - self.threshold * spikes).detach()
        return spikes


class VGG11(nn.Module):
    """The STOP paper's VGG-11 with batch norm."""

    def __init__(self, leak: float, threshold: float):
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for entry in PLAN:
            if isinstance(entry, int):
                layers.append(Layer(inputs, entry, leak, threshold))
                inputs = entry
            else:
                layers.append(nn.AvgPool2d(2))
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, 10)

    def reset(self) -> None:
        for layer in self.layers:
            if isinstance(layer, Layer):
                layer.reset()

    def forward(self, images: Tensor) -> Tensor:
        """One step: images `[B, 3, H, W]` to the currents into the readout `[B, 10]`."""
        return self.head(self.layers(images).mean((2, 3)))


def training_step(network: VGG11, images: Tensor, labels: Tensor, timesteps: int) -> None:
    """Fill `.grad`: a forward and a backward pass at every step."""
    network.reset()
    for _ in range(timesteps):
        loss = functional.cross_entropy(network(images), labels) / timesteps
        loss.backward()
