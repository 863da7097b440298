"""Labelled images in memory or in files, and data sets of them."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hybridsnn.errors import DataError

FILES_PER_TASK = 4  # small enough to keep every core busy on one batch, large enough to be worth a thread
BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class Images(Protocol):
    """Images of one size and their labels, read by position.

    Attributes:
        labels: int64 [N], each 0 to the number of classes - 1.
        shape: (C, H, W) of every image.
    """

    @property
    def labels(self) -> Tensor: ...

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def __len__(self) -> int: ...

    def batch(self, positions: Tensor) -> Tensor:
        """The raw images at `positions` (int64 [B]): uint8 [B, C, H, W], or [B, T, C, H, W] if they are frames.

        They are on the device that holds the images.

        Raises:
            DataError: if a file that holds one of them cannot be read.
        """
        ...

    def identity(self) -> Iterator[bytes | memoryview]:
        """Bytes that identify these images, for the fingerprint; quick, since no image is decoded."""
        ...


@dataclass(frozen=True, eq=False)
class MemoryImages:
    """`Images` held decoded: `pixels` uint8 [N, C, H, W], on any device; `labels` int64 [N]."""

    pixels: Tensor
    labels: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, positions: Tensor) -> Tensor:
        return self.pixels[positions.to(self.pixels.device)]

    def identity(self) -> Iterator[bytes | memoryview]:
        yield self.pixels.cpu().contiguous().numpy().data


@dataclass(frozen=True, eq=False)
class FileImages:
    """`Images` decoded from files, batch by batch: `files` are relative to `root`, `labels` int64 [N]."""

    root: Path
    files: Sequence[str]
    labels: Tensor
    size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, self.size, self.size

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, positions: Tensor) -> Tensor:
        return decode(self.root, [self.files[position] for position in positions.tolist()], self.size)

    def identity(self) -> Iterator[bytes | memoryview]:
        for file in self.files:
            yield f"{file}\n{(self.root / file).stat().st_size}\n".encode()


@dataclass(frozen=True, eq=False)
class ImageData:
    """A loaded data set: training images, test images, and the names of their classes.

    Attributes:
        name: registry name; for a folder of images `imagefolder:<folder name>`.
        classes: the name of each label.
        fingerprint: SHA-256 over classes, labels and pixels (of files decoded batch by batch and of
            recordings: names and sizes), which identifies the data of a run.
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    fingerprint: str


def held_on(images: Images, device: torch.device, limit: int) -> Images:
    """The same images, on a device if they are in memory and take at most `limit` bytes there."""
    if isinstance(images, MemoryImages) and images.pixels.nbytes <= limit:
        return replace(images, pixels=images.pixels.to(device))
    return images


def image_data(name: str, train: Images, test: Images, classes: Sequence[str]) -> ImageData:
    """The data set made of these parts, with its fingerprint."""
    digest = hashlib.sha256("\n".join(classes).encode())
    for images in (train, test):
        digest.update(f"{images.shape}".encode())
        digest.update(images.labels.contiguous().numpy().data)
        for part in images.identity():
            digest.update(part)
    return ImageData(name, train, test, tuple(classes), digest.hexdigest())


def decode(root: Path, files: Sequence[str], size: int) -> Tensor:
    """Images in `files` as RGB: uint8 [N, 3, size, size].

    The shorter side is resized to `size` (bilinear, antialiased), then the centre is cropped; an image that already
    has that size is untouched.

    Raises:
        DataError: naming the first file that is not a readable image.
    """
    pixels = np.empty((len(files), size, size, 3), dtype=np.uint8)

    def fill(start: int) -> None:
        for position in range(start, min(start + FILES_PER_TASK, len(files))):
            path = root / files[position]
            try:
                with Image.open(BytesIO(path.read_bytes())) as image:  # one read: PIL alone makes many small ones
                    pixels[position] = np.asarray(_square(image.convert("RGB"), size))
            except BROKEN_IMAGE as error:
                raise unreadable(path, error) from error

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:  # PIL lets go of the interpreter while it decodes
        for _ in pool.map(fill, range(0, len(files), FILES_PER_TASK)):
            pass
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def shorter_side(path: Path) -> int:
    """The shorter side of an image, pixels; reads its header only.

    Raises:
        DataError: if it is not a readable image.
    """
    try:
        with Image.open(path) as image:
            return min(image.size)
    except BROKEN_IMAGE as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(f"{path}: not a readable image ({reason}). Replace or remove this file")


def _square(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    shorter = min(width, height)
    if shorter != size:
        width, height = int(width * size / shorter), int(height * size / shorter)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if width == height:
        return image
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))
