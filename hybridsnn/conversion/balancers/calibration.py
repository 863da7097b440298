"""What thresholds are measured on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from hybridsnn.encoders import ENCODERS, Encoder

FRAMES = 512  # how many frames a synapse sees at once while balancing; bounds the memory of the sweep


@dataclass(frozen=True)
class Calibration:
    """What thresholds are measured on.

    Attributes:
        images: normalised training images `[N, C, H, W]`, or events `[N, T, C, H, W]`.
        indices: which they are, int64 `[N]`: their random spikes depend on it.
        encoder: of the spiking network.
        seed: of random spikes.
        timesteps: number of time steps T that the network will run for; what is fitted is fitted to it.
        advance: called with a layer's name when its threshold is known.
    """

    images: Tensor
    indices: Tensor
    encoder: Encoder
    seed: int = 0
    advance: Callable[[str], None] = lambda name: None
    timesteps: int = 16

    def batches(self, timesteps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and indices, as many at a time as can be run for so many steps at once."""
        size = max(1, FRAMES // timesteps)
        yield from zip(self.images.split(size), self.indices.split(size), strict=True)

    def available(self, wanted: int) -> int:
        """How long these images can be simulated: as long as wanted, or as there are frames of events."""
        return min(wanted, self.images.shape[1]) if ENCODERS[self.encoder.name].events else wanted
