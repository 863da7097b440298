"""A batch of pictures, as data sets make it and training and measuring use it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Pictures for a network.

    Attributes:
        images: float32 [B, C, H, W], normalised.
        labels: int64 [B].
        indices: int64 [B], the position of each picture in its data set: the counter of its random spikes.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
