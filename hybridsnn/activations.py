"""Activations that an ANN is trained with because they are what neurons can show in few steps."""

from typing import Any

import torch
from torch import Tensor, nn

from hybridsnn.errors import ConfigError

CEILING = 8.0  # where the learned ceiling starts (Bu et al., 2022)
SMALLEST_CEILING = 1e-3  # the lower bound of a learned ceiling
CEILINGS_PER = ("layer", "channel")


class QCFS(nn.Module):
    """Quantisation, clip, floor, shift: a staircase of `levels` steps up to a ceiling that learns.

        y = ceiling * clip(floor(z * levels / ceiling + 1/2) / levels, 0, 1)

    The floor is passed straight through by gradients (Bu et al., ICLR 2022, eqs. 10 and 16). A spiking neuron with a
    threshold of the ceiling that starts at half of it fires `levels * y / ceiling` times in so many steps of a constant
    current z.

    Args:
        levels: number of steps above 0.
        channels: a ceiling for each of them; None: one for the layer.
    """

    def __init__(self, levels: int, channels: int | None = None):
        super().__init__()
        self.levels = levels
        self.ceiling = nn.Parameter(torch.full(() if channels is None else (channels,), CEILING))

    def forward(self, values: Tensor) -> Tensor:
        """`[B, C, ...]` to `[B, C, ...]`."""
        ceiling = self.ceiling.view(-1, *[1] * (values.dim() - 2)) if self.ceiling.dim() else self.ceiling
        share = (values / ceiling).clamp(0, 1)
        floor: Tensor = _Floor.apply(share * self.levels + 0.5)
        return ceiling * floor / self.levels

    @torch.no_grad()
    def project(self) -> None:
        """Bring a learned ceiling back above 0."""
        self.ceiling.clamp_(min=SMALLEST_CEILING)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, ceilings {tuple(self.ceiling.shape)}"


class _Floor(torch.autograd.Function):
    """The floor, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.floor()

    @staticmethod
    def backward(ctx: Any, *errors: Any) -> Tensor:
        error: Tensor = errors[0]
        return error


def with_qcfs(network: nn.Module, levels: int, channels_for: tuple[int, ...] | None = None) -> nn.Module:
    """Put a staircase of so many levels in the place of each ReLU module of a network; returns the network.

    Args:
        channels_for: for a ceiling in each channel: the shape of one sample, to find how many channels there are.

    Raises:
        ConfigError: if the network has no ReLU module.
    """
    channels: dict[nn.Module, int] = {}
    relus = [module for module in network.modules() if type(module) is nn.ReLU]
    if not relus:
        raise ConfigError(f"activation: got 'qcfs', but {type(network).__name__} has no ReLU module to put it in for")
    if channels_for is not None:

        def note(relu: nn.Module, given: object, activation: Tensor) -> None:
            channels[relu] = activation.shape[1]

        hooks = [relu.register_forward_hook(note) for relu in relus]
        training = network.training
        with torch.no_grad():
            network.eval()(torch.zeros(1, *channels_for))
        network.train(training)
        for hook in hooks:
            hook.remove()
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.ReLU:
                setattr(parent, name, QCFS(levels, channels.get(child)))
    return network
