"""Published data sets in the layout of torchvision, which reads and downloads them."""

import pickle
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hybridsnn.data.images import ImageData, MemoryImages, image_data
from hybridsnn.errors import DataError

# The exceptions of torchvision and its readers for missing or damaged files.
READING_ERRORS = (
    RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError, EOFError, OSError,
    struct.error, zlib.error, pickle.UnpicklingError,
)  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A data set of torchvision.

    Attributes:
        name: in `DATASETS`.
        torchvision_name: of the class in `torchvision.datasets`.
        folder: below the data root.
        files: in that folder.
        shape: (C, H, W).
    """

    name: str
    torchvision_name: str
    folder: str
    files: tuple[str, ...]
    shape: tuple[int, int, int]

    def load(self, root: Path, download: bool) -> ImageData:
        """Training and test images, in memory.

        Args:
            root: torchvision's root: `root/MNIST/raw`, `root/cifar-10-batches-py` and so on.
            download: fetch missing files.

        Raises:
            DataError: if the files are missing, packed, damaged, or could not be fetched.
        """
        from torchvision import datasets  # takes seconds to import

        dataset = getattr(datasets, self.torchvision_name)
        try:
            train, test = (dataset(root, train=train, download=download) for train in (True, False))
            train_images, test_images = self._images(train), self._images(test)
        except READING_ERRORS as error:
            raise self._explain(root, download, error) from error
        return image_data(self.name, train_images, test_images, train.classes)

    def _images(self, part: Any) -> MemoryImages:
        pixels = torch.as_tensor(part.data)
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
        labels = torch.as_tensor(part.targets, dtype=torch.int64)
        if pixels.dtype != torch.uint8 or pixels.shape[1:] != self.shape:
            raise ValueError(f"images are {pixels.dtype} {tuple(pixels.shape[1:])}, not uint8 {self.shape}")
        if not 0 < len(pixels) == len(labels):
            raise ValueError(f"{len(pixels)} images but {len(labels)} labels")
        if labels.min() < 0 or labels.max() >= len(part.classes):
            raise ValueError(f"a label is outside 0 to {len(part.classes) - 1}")
        return MemoryImages(pixels, labels)

    def _explain(self, root: Path, download: bool, error: Exception) -> DataError:
        folder = root / self.folder
        command = f"hybridsnn train-ann --dataset {self.name} --data {root} --download"
        missing = [file for file in self.files if not (folder / file).is_file()]
        packed = [file for file in missing if (folder / f"{file}.gz").is_file()]
        reason = " ".join(str(error).split()) or type(error).__name__
        if missing and download:
            return DataError(
                f"{self.name}: could not fetch {missing[0]} into {folder}: {reason}. "
                f"Put {', '.join(self.files)} there yourself"
            )
        if packed and packed == missing:
            return DataError(
                f"{self.name}: {folder} holds {packed[0]}.gz, expected it unpacked. Run: "
                f"gunzip --keep {folder}/*.gz (if the folder is read-only: in a copy, given as --data)"
            )
        if missing:
            return DataError(
                f"{self.name}: {folder} has no {missing[0]}; expected {', '.join(self.files)}. Run: {command}"
            )
        return DataError(
            f"{self.name}: {folder} is damaged ({reason}); expected {', '.join(self.files)} as published. "
            f"Remove the folder and run: {command}"
        )


IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
MNIST = Published("mnist", "MNIST", "MNIST/raw", IDX_FILES, (1, 28, 28))
FASHION_MNIST = Published("fashion-mnist", "FashionMNIST", "FashionMNIST/raw", IDX_FILES, (1, 28, 28))
CIFAR10 = Published(
    "cifar10",
    "CIFAR10",
    "cifar-10-batches-py",
    (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"),
    (3, 32, 32),
)
CIFAR100 = Published("cifar100", "CIFAR100", "cifar-100-python", ("train", "test", "meta"), (3, 32, 32))
