"""A batch of pictures, as data sets make it and training and measuring use it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Pictures for a network.

    Attributes:
        images: float32 [B, C, H, W], normalised; of events [B, T, C, H, W], frames over time.
        labels: int64 [B].
        indices: int64 [B], the position of each picture in its data set: the counter of its random spikes.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor

    @property
    def pictures(self) -> Tensor:
        """What a network without time sees: [B, C, H, W]."""
        return without_time(self.images)


def without_time(images: Tensor) -> Tensor:
    """Pictures [B, C, H, W] as they are, frames [B, T, C, H, W] by their mean: the constant current of equal total."""
    return images.mean(1) if images.dim() == 5 else images
