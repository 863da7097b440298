"""Activations that an ANN is trained with because they are what neurons can show in few steps."""

from typing import Any

import torch
from torch import Tensor, nn

CEILING = 8.0  # where the learned ceiling starts (Bu et al., 2022)


class QCFS(nn.Module):
    """Quantisation, clip, floor, shift: a staircase of `levels` steps up to a ceiling that learns.

        y = ceiling * clip(floor(z * levels / ceiling + 1/2) / levels, 0, 1)

    The floor is passed straight through by gradients (Bu et al., ICLR 2022, eqs. 10 and 16). A spiking neuron with a
    threshold of the ceiling that starts at half of it fires `levels * y / ceiling` times in so many steps of a constant
    current z.

    Args:
        levels: number of steps above 0.
    """

    def __init__(self, levels: int):
        super().__init__()
        self.levels = levels
        self.ceiling = nn.Parameter(torch.tensor(CEILING))

    def forward(self, values: Tensor) -> Tensor:
        """`[...]` to `[...]`."""
        share = (values / self.ceiling).clamp(0, 1)
        floor: Tensor = _Floor.apply(share * self.levels + 0.5)
        return self.ceiling * floor / self.levels

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


class _Floor(torch.autograd.Function):
    """The floor, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.floor()

    @staticmethod
    def backward(ctx: Any, *errors: Any) -> Tensor:
        error: Tensor = errors[0]
        return error


def with_qcfs(network: nn.Module, levels: int) -> nn.Module:
    """Put a staircase of so many levels in the place of each ReLU module of a network; returns the network."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.ReLU:
                setattr(parent, name, QCFS(levels))
    return network
