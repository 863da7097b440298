"""The memory that a training step needs on top of its network."""

from collections.abc import Callable

from torch import nn

from hybridsnn.memory import LiveMemory


def activation_bytes(network: nn.Module, step: Callable[[], object]) -> int:
    """The peak of live bytes of a step, without weights, the optimiser's state, and gradients of weights.

    Weights and state were there before the step and so do not count. Gradients do not all exist at the peak, so their
    size cannot be taken off afterwards: whatever has the shape of a weight, transposed or not, is left out from the
    start. That takes copies of weights at another precision with it.
    """
    shapes = {tuple(sorted(parameter.shape)) for parameter in network.parameters() if parameter.dim() > 1}
    with LiveMemory(lambda tensor: tuple(sorted(tensor.shape)) not in shapes) as memory:
        step()
    return memory.peak
