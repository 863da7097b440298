"""Small networks, pictures and spiking models with which the tests exercise conversion, simulation and learning."""

import torch
from torch import Tensor, nn

from hybridsnn.conversion import spiking_body
from hybridsnn.encoders import ENCODERS, Encoder
from hybridsnn.model import SpikingModel
from hybridsnn.networks.resnet import BasicBlock
from hybridsnn.program.operations import BATCH_NORMS, SYNAPSES

SHAPE = (2, 8, 8)
CLASSES = 5


class Residual(nn.Module):
    """A pool, dropout, and one residual block with each kind of shortcut."""

    def __init__(self, *, dropout: float = 0.0, batch_norm: bool = False):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Dropout(dropout), nn.AvgPool2d(2)
        )
        self.same = BasicBlock(4, 4, 1, batch_norm=batch_norm, dropout=dropout)
        self.other = BasicBlock(4, 6, 2, batch_norm=batch_norm, dropout=dropout)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(6 * 2 * 2, CLASSES, bias=False))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.other(self.same(self.stem(images))))


def seeded(network: nn.Module, seed: int = 0, gain: float = 1.0) -> nn.Module:
    """Weights, biases and statistics of batch norms that keep activations alive; in evaluation mode."""
    random = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=random)

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, SYNAPSES):
                module.weight.copy_(normal(module.weight) * gain * (2 / module.weight[0].numel()) ** 0.5)
                if module.bias is not None:
                    module.bias.copy_(0.2 * normal(module.bias))
            elif isinstance(module, BATCH_NORMS):
                module.weight.copy_(1 + 0.2 * normal(module.weight))
                module.bias.copy_(0.2 * normal(module.bias))
                module.running_mean.copy_(0.2 * normal(module.running_mean))
                module.running_var.copy_(0.5 + normal(module.running_var).abs())
    return network.eval()


def exact(network: nn.Module) -> nn.Module:
    """Weights rounded to multiples of 1/256: sums of what follows from exact pictures are exact in float32."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_((parameter * 256).round() / 256)
    return network


def pictures(count: int, shape: tuple[int, ...] = SHAPE, seed: int = 1) -> Tensor:
    """`[count, *shape]` in [-1, 1], multiples of 1/16."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(-16, 17, (count, *shape), generator=random) / 16


def encodable(encoder: str, count: int, timesteps: int) -> Tensor:
    """What an encoder takes: `pictures`, or so many frames of events, `[count, timesteps, *SHAPE]`."""
    if not ENCODERS[encoder].events:
        return pictures(count)
    return pictures(count * timesteps).unflatten(0, (count, timesteps))


def spiking(
    network: nn.Module, encoder: str = "direct", shape: tuple[int, ...] = SHAPE, **options: str
) -> SpikingModel:
    """A spiking model with thresholds below 1, so that spikes reach its end within a few steps."""
    model = SpikingModel(spiking_body(network, shape, **options), Encoder(encoder)).eval()
    with torch.no_grad():
        for place, neuron in enumerate(model.neurons.values()):
            neuron.threshold.fill_(0.5 + 0.125 * (place % 3))
    return model
