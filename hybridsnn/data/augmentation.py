"""Augmentation of training images, on whole batches before normalisation."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hybridsnn.data.preprocessing import centre_crop


@dataclass(frozen=True)
class Augmentation:
    """A random transformation of each image of a batch.

    `apply(images, size, generator)` takes raw images [B, C, H, W] (uint8, or float with values 0 to 255; H and W at
    least `size`) and returns [B, C, size, size] of the same type and range. Each image is transformed independently;
    pixels from outside an image are black (0). The result is a function of the three arguments alone. Random numbers
    come from the CPU, and are the same whatever device the images are on.
    """

    name: str
    summary: str
    apply: Callable[[Tensor, int, torch.Generator], Tensor]


def none(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """The centre of every image, unchanged."""
    return centre_crop(images, size)


def shift(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to an eighth of its side, in both directions."""
    margin = max(1, round(size / 8))  # 4 pixels at 32
    padded = functional.pad(centre_crop(images, size), (margin, margin, margin, margin))
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # [B, C, 2 margin + 1, 2 margin + 1, size, size], a view
    top, left = torch.randint(2 * margin + 1, (2, len(images)), generator=generator).to(images.device)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored left to right with probability one half."""
    mirrored = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def crop_flip(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A random crop of the padded image, mirrored or not."""
    return flip(shift(images, size, generator), generator)


def cut_out(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Each image with a square of a quarter of its side replaced by its mean colour (DeVries and Taylor, 2017).

    The centre of the square is any pixel, so that up to three quarters of it may lie outside.
    """
    side = max(1, round(size / 4))
    centres = torch.randint(size, (2, len(images), 1), generator=generator)
    offsets = torch.arange(size) - (centres - side // 2)  # [2, B, size]
    rows, columns = ((offsets >= 0) & (offsets < side)).to(images.device)
    mean = images.float().mean((2, 3), keepdim=True).to(images.dtype)
    return torch.where((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), mean, images)


def crop_flip_cut_out(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A random crop of the padded image, mirrored or not, with a square cut out."""
    return cut_out(crop_flip(images, size, generator), size, generator)


def affine(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Each image rotated by up to 10 degrees, scaled by 0.9 to 1.1, sheared by up to 0.1, shifted by up to 10 %."""
    angle, scale, shear, right, down = 2 * torch.rand(5, len(images), generator=generator) - 1
    angle, scale, shear = angle * math.radians(10), 1 + 0.1 * scale, 0.1 * shear
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    # Maps coordinates in the result to coordinates in the source, both in [-1, 1].
    transform = torch.stack(
        [cosine, shear * cosine - sine, 0.2 * right, sine, shear * sine + cosine, 0.2 * down], dim=1
    ).view(-1, 2, 3)
    return _resample(centre_crop(images, size), transform, size, padding="zeros")


def resized_crop_flip(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A random rectangle, 8 to 100 % of the area and 3:4 to 4:3 in shape, resized and mirrored or not."""
    tries = 10  # as many as torchvision makes before it takes the whole image
    draws = torch.rand(2, len(images), tries, generator=generator)
    area, ratio = 0.08 + 0.92 * draws[0], torch.exp((2 * draws[1] - 1) * math.log(4 / 3))
    widths, heights = (area * ratio).sqrt(), (area / ratio).sqrt()  # [B, tries], in sides of the image
    fits = (widths <= 1) & (heights <= 1)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    whole = ~fits.any(dim=1)
    width = widths.gather(1, first).squeeze(1).masked_fill(whole, 1)
    height = heights.gather(1, first).squeeze(1).masked_fill(whole, 1)
    across, along = 2 * torch.rand(2, len(images), generator=generator) - 1
    zero = torch.zeros_like(width)
    transform = torch.stack([width, zero, across * (1 - width), zero, height, along * (1 - height)], dim=1)
    return flip(_resample(images, transform.view(-1, 2, 3), size, padding="border"), generator)


def _resample(images: Tensor, transform: Tensor, size: int, padding: str) -> Tensor:
    """Images resampled by the affine maps `transform` [B, 2, 3], bilinearly, in their own type."""
    shape = [len(images), images.shape[1], size, size]
    grid = functional.affine_grid(transform.to(images.device), shape, align_corners=False)
    sampled = functional.grid_sample(images.float(), grid, "bilinear", padding, align_corners=False)
    return sampled.round_().to(images.dtype) if images.dtype == torch.uint8 else sampled


AUGMENTATIONS: dict[str, Augmentation] = {
    entry.name: entry
    for entry in (
        Augmentation("none", "no change", none),
        Augmentation("shift", "shifted by up to an eighth of the side; for digits", shift),
        Augmentation("affine", "rotated by up to 10 degrees, resized and shifted by up to 10 %; for digits", affine),
        Augmentation("crop-flip", "random crop after padding by an eighth of the side, random mirroring", crop_flip),
        Augmentation("crop-flip-cutout", "crop-flip, and a square of a quarter of the side cut out", crop_flip_cut_out),
        Augmentation(
            "resized-crop-flip", "random rectangle resized, random mirroring; for large images", resized_crop_flip
        ),
    )
}
