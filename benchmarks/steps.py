"""Training steps of the learning rules on the STOP paper's VGG-11, for timing and for measuring memory."""

from collections.abc import Callable

import torch
from torch import Tensor

from hybridsnn.conversion import spiking_body
from hybridsnn.encoders import Encoder
from hybridsnn.learning import RULES
from hybridsnn.model import SpikingModel
from hybridsnn.networks import NetworkSpec

SURROGATE = "exponential"
LEAK, THRESHOLD = 0.5, 1.0


def spiking_vgg11(side: int) -> SpikingModel:
    """The STOP paper's VGG-11 with batch norm, untrained."""
    network = NetworkSpec("vgg11-gap", (3, side, side), 10, batch_norm=True, dropout=0.0).build()
    model = SpikingModel(spiking_body(network, (3, side, side), fold_batch_norm=False), Encoder("direct"))
    for neuron in model.neurons.values():
        neuron.threshold.data.fill_(THRESHOLD)
        neuron.leak.data.fill_(LEAK)
    return model.to(memory_format=torch.channels_last)


def learn(model: SpikingModel, method: str) -> SpikingModel:
    """The model with the thresholds and leaks learning that the method learns."""
    rule = RULES[method]()
    for neuron in model.neurons.values():
        neuron.threshold.requires_grad_(rule.learns_thresholds)
        neuron.leak.requires_grad_(rule.learns_leaks)
    return model


def step_of(model: SpikingModel, method: str, images: Tensor, labels: Tensor, timesteps: int) -> Callable[[], None]:
    """One call is one training step: forward, backward, update."""
    rule = RULES[method](surrogate=SURROGATE)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9, fused=True)
    frames = images.contiguous(memory_format=torch.channels_last).expand(timesteps, *images.shape)

    def step() -> None:
        learn(model.train(), method)
        optimiser.zero_grad()
        rule.step(model, frames, labels, lambda loss: loss.backward())
        optimiser.step()

    return step
