"""A batch of labelled images, as data sets make it and training and evaluation use it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Images, their labels and their indices in the data set.

    Attributes:
        images: float32 [B, C, H, W], normalised; of event data [B, T, C, H, W], frames over time.
        labels: int64 [B].
        indices: int64 [B], the position of each image in its data set; random spikes are a function of it.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor

    @property
    def time_average(self) -> Tensor:
        """The input of a network without time: [B, C, H, W]."""
        return time_average(self.images)


def time_average(images: Tensor) -> Tensor:
    """Images [B, C, H, W] unchanged; frames [B, T, C, H, W] averaged over T, the constant input of equal total."""
    return images.mean(1) if images.dim() == 5 else images
