"""Spikes that are kept while later layers are balanced."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hybridsnn.kernels.neuron import Kernel, choose
from hybridsnn.neurons import SpikingNeuron


@dataclass(frozen=True)
class SpikeTrain:
    """Spikes `[T, B, *N]` of a layer, one bit each."""

    kernel: Kernel
    bits: Tensor
    steps: int
    dtype: torch.dtype

    @classmethod
    def of(cls, neuron: SpikingNeuron, current: Tensor) -> "SpikeTrain":
        """What a layer makes of currents `[T, B, *N]`, whose memory it may use."""
        kernel = choose(neuron.kernel, current)
        state = neuron.initial_state(current)
        *_, bits, _ = kernel.forward(
            current,
            neuron.threshold.detach(),
            neuron.leak.detach(),
            *state,
            neuron.reset == "hard",
            pack=True,
            overwrite=True,
        )
        assert bits is not None
        return cls(kernel, bits, len(current), current.dtype)

    def spikes(self) -> Tensor:
        """The spikes `[T, B, *N]`, 0 or 1."""
        return self.kernel.unpack(self.bits, self.steps, self.dtype)
