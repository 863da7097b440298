"""Preprocessing: raw images to the input of a network."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hybridsnn.errors import DataError


@dataclass(frozen=True)
class Preprocessing:
    """Centre crop to `size`, scale to [0, 1], subtract `mean` and divide by `std`, channel by channel.

    `dataclasses.asdict` gives a dict that survives JSON: `Preprocessing(**dict)` equals the original.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))  # JSON knows lists only
        object.__setattr__(self, "std", tuple(self.std))

    @property
    def bound(self) -> float:
        """The largest absolute value that a normalised pixel can have."""
        return max(max(mean, 1 - mean) / std for mean, std in zip(self.mean, self.std, strict=True))

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images.

        Args:
            images: [..., C, H, W], uint8 or float, values 0 to 255, H and W at least `size`. Frames of event counts
                are normalised in the same way.

        Returns:
            float32 [..., C, size, size].

        Raises:
            DataError: if the images are too small or have another number of channels.
        """
        channels, height, width = images.shape[-3:]
        if channels != len(self.mean):
            raise DataError(
                f"images: got {channels} channels, the network's preprocessing has {len(self.mean)}. "
                "Use the data set it was trained on, or one like it"
            )
        if min(height, width) < self.size:
            raise DataError(
                f"images: got {height} x {width} pixels, the network wants {self.size} x {self.size}. "
                f"Load the data set with size {self.size}"
            )
        # (x / 255 - mean) / std as one multiplication and one addition
        scale = torch.tensor([1 / (255 * std) for std in self.std], device=images.device)
        offset = torch.tensor(
            [-mean / std for mean, std in zip(self.mean, self.std, strict=True)], device=images.device
        )
        normalised = centre_crop(images, self.size).to(torch.float32, copy=True)
        return normalised.mul_(scale[:, None, None]).add_(offset[:, None, None])


def centre_crop(images: Tensor, size: int) -> Tensor:
    """The centre of each image: [..., H, W] -> a view [..., size, size]; H and W at least `size`."""
    top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
    return images[..., top : top + size, left : left + size]
