"""Initial weights."""

import math

from torch import nn


def initialise(network: nn.Module) -> None:
    """Convolutions N(0, sqrt(2 / (k^2 c_out))), linear layers N(0, 0.01); for networks without biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan))
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)


def initialise_to_train(network: nn.Module) -> None:
    """Weights N(0, sqrt(2 / inputs)) (He et al., 2015), so that activations keep their size through ReLUs; biases 0."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
