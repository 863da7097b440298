"""The data sets by name."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from hybridsnn.data.defaults import (
    CLOTHES,
    DIGITS,
    GREY_DIGITS,
    LARGE_IMAGES,
    RECORDINGS,
    SMALL_IMAGES,
    TrainingDefaults,
)
from hybridsnn.data.events import BINNINGS, Binning
from hybridsnn.data.folders import LAYOUT, load_folder
from hybridsnn.data.images import ImageData, Images, MemoryImages, image_data
from hybridsnn.data.preprocessing import Preprocessing
from hybridsnn.data.published import CIFAR10, CIFAR100, FASHION_MNIST, MNIST, Published
from hybridsnn.data.recordings import CIFAR10_DVS, DVS_GESTURE, NMNIST, Recordings
from hybridsnn.data.split import split_validation
from hybridsnn.errors import ConfigError, DataError
from hybridsnn.registry import look_up

DEFAULT_BINNING = "time"
DIGITS_TEST_FRACTION, DIGITS_TEST_SEED = 0.2, 1797  # a constant: every run tests on the same 359 digits


@dataclass(frozen=True)
class Access:
    """Where the files of a data set are and how to read them; no part of what they hold.

    Attributes:
        folder: where its files are; None if the user gave none.
        download: fetch missing files.
        memory_limit: bytes that decoded files may take; None: a quarter of the machine's memory.
        say: receives messages about work that takes long.
    """

    folder: Path | None
    download: bool
    memory_limit: int | None
    say: Callable[[str], None]


# From the side of the stored images (None: as they come) and the binning of recordings (None for images).
Reader = Callable[[Access, int | None, Binning | None], ImageData]


@dataclass(frozen=True)
class DataSet:
    """An entry of `DATASETS`: how to load a data set, and how it is preprocessed by default.

    Attributes:
        size: default height and width of a network's input, pixels; None: those of the first image.
        mean, std: per channel, for pixels in [0, 1].
        augmentation: default for training.
        read: reads the files.
        margin: stored size / size of the network's input. Above 1, evaluation crops the centre, augmentation any part.
        frames: default number of frames that a recording is binned to; None: the data are images, not events.
        training: how `train-ann` trains on it by default.
    """

    name: str
    summary: str
    size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: str
    read: Reader
    margin: float = 1.0
    frames: int | None = None
    training: TrainingDefaults = DIGITS

    def preprocessing(self, data: ImageData) -> Preprocessing:
        """The preprocessing of `data`, loaded from this data set at any size."""
        return Preprocessing(round(data.train.shape[-1] / self.margin), self.mean, self.std)


def load(
    name: str,
    *,
    folder: Path | None = None,
    download: bool = False,
    size: int | None = None,
    memory_limit: int | None = None,
    event_frames: int | None = None,
    event_binning: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> ImageData:
    """Load a data set of the registry.

    Args:
        name: in `DATASETS`.
        folder: for `mnist`, `fashion-mnist`, `cifar10` and `cifar100` the root of torchvision's layout, for `nmnist`,
            `dvs-gesture` and `cifar10-dvs` that of tonic's, by default $HYBRIDSNN_DATA or else
            ~/.cache/hybridsnn/data; for `imagefolder` and `imagenet` the one that holds
            `train`, without default; `digits` needs none.
        download: fetch missing files, where that is possible.
        size: height and width of the network's input, pixels; None: the data set's own.
        memory_limit: bytes that decoded image files may take before they are decoded batch by batch instead;
            None: a quarter of the machine's memory.
        event_frames: how many frames recordings are binned to; None: the data set's own. Not for images.
        event_binning: in `BINNINGS`; None: equal windows of time. Not for images.
        say: receives messages about work that takes long.

    Raises:
        ConfigError: if there is no such data set or binning, a number is not positive, images are to be binned, or
            recordings are to be enlarged.
        DataError: if the data set is missing or damaged.
    """
    dataset = look_up(DATASETS, name, "dataset")
    side = dataset.size if size is None else size
    if side is not None and side < 1:
        raise ConfigError(f"size: got {side}, must be at least 1 pixel")
    stored = None if side is None else round(side * dataset.margin)
    binning = _binning(dataset, stored, event_frames, event_binning)
    return dataset.read(Access(folder.expanduser() if folder else None, download, memory_limit, say), stored, binning)


def _binning(dataset: DataSet, size: int | None, frames: int | None, by: str | None) -> Binning | None:
    if dataset.frames is None:
        for setting, value in (("event_frames", frames), ("event_binning", by)):
            if value is not None:
                events = ", ".join(name for name, entry in DATASETS.items() if entry.frames is not None)
                raise ConfigError(
                    f"{setting}: got {value}, but '{dataset.name}' holds images, not events. "
                    f"Leave it out, or choose a data set of events: {events}"
                )
        return None
    if frames is not None and frames < 1:
        raise ConfigError(f"event_frames: got {frames}, must be at least 1")
    look_up(BINNINGS, by or DEFAULT_BINNING, "event_binning")
    assert size is not None  # recordings have one
    return Binning(frames or dataset.frames, by or DEFAULT_BINNING, size)


def default_folder() -> Path:
    """The default folder of data sets."""
    return Path(os.environ.get("HYBRIDSNN_DATA") or "~/.cache/hybridsnn/data").expanduser()


def _resized(data: ImageData, size: int | None) -> ImageData:
    """The data with images of this size, bilinear and antialiased. A new size makes a new fingerprint."""
    if size is None or size == data.train.shape[-1]:
        return data
    train, test = (_resized_images(images, size) for images in (data.train, data.test))
    return image_data(data.name, train, test, data.classes)


def _resized_images(images: Images, size: int) -> MemoryImages:
    chunks = torch.arange(len(images)).split(1024)  # bounds the working memory
    pixels = [
        functional.interpolate(images.batch(chunk), (size, size), mode="bilinear", antialias=True) for chunk in chunks
    ]
    return MemoryImages(torch.cat(pixels), images.labels)


def _digits(access: Access, size: int | None, binning: Binning | None) -> ImageData:
    """scikit-learn's 1,797 digits, values 0 to 16 stretched to 0 to 255; a stratified fifth of them is the test set."""
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    pixels = torch.from_numpy(np.round(digits.images * 255 / 16).astype(np.uint8)[:, None])
    labels = torch.from_numpy(digits.target).long()
    train, test = (
        MemoryImages(pixels[part], labels[part])
        for part in split_validation(labels, DIGITS_TEST_FRACTION, DIGITS_TEST_SEED)
    )
    classes = [str(name) for name in digits.target_names]
    return _resized(image_data("digits", train, test, classes), size)


def _published(published: Published) -> Reader:
    def read(access: Access, size: int | None, binning: Binning | None) -> ImageData:
        return _resized(published.load(access.folder or default_folder(), access.download), size)

    return read


def _recorded(recordings: Recordings) -> Reader:
    def read(access: Access, size: int | None, binning: Binning | None) -> ImageData:
        assert binning is not None  # `load` gives one for events
        root, cache = access.folder or default_folder(), default_folder() / "events"
        return recordings.load(root, access.download, binning, cache, access.say)

    return read


def _image_folder(access: Access, size: int | None, binning: Binning | None) -> ImageData:
    folder = _required("imagefolder", access)
    return load_folder(f"imagefolder:{folder.name}", folder, size, access.memory_limit)


def _imagenet(access: Access, size: int | None, binning: Binning | None) -> ImageData:
    return load_folder("imagenet", _required("imagenet", access), size, access.memory_limit)


def _required(name: str, access: Access) -> Path:
    if access.folder is None:
        raise DataError(f"{name}: no folder given; {LAYOUT}. Give it: --dataset {name} --data FOLDER")
    return access.folder.absolute()


GREY_HALF, COLOUR_HALF = (0.5,), (0.5, 0.5, 0.5)
# Counts of events are divided by a constant: about the count of an active pixel in one of ten frames.
NO_EVENTS, TWO_EVENTS, FOUR_EVENTS = (0.0, 0.0), (2 / 255, 2 / 255), (4 / 255, 4 / 255)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

DATASETS: dict[str, DataSet] = {
    entry.name: entry
    for entry in (
        DataSet("digits", "1,797 grey digits, 8 x 8, 10 classes; comes with scikit-learn, needs no file",
                8, GREY_HALF, GREY_HALF, "shift", _digits),
        DataSet("mnist", "70,000 grey digits, 28 x 28, 10 classes",
                28, GREY_HALF, GREY_HALF, "affine", _published(MNIST), training=GREY_DIGITS),
        DataSet("fashion-mnist", "70,000 grey images of clothes, 28 x 28, 10 classes",
                28, GREY_HALF, GREY_HALF, "crop-flip", _published(FASHION_MNIST), training=CLOTHES),
        DataSet("cifar10", "60,000 colour images, 32 x 32, 10 classes",
                32, COLOUR_HALF, COLOUR_HALF, "crop-flip", _published(CIFAR10), training=SMALL_IMAGES),
        DataSet("cifar100", "60,000 colour images, 32 x 32, 100 classes",
                32, COLOUR_HALF, COLOUR_HALF, "crop-flip", _published(CIFAR100), training=SMALL_IMAGES),
        DataSet("imagefolder", "your own images in train/<class>/* and test/<class>/* or val/<class>/*",
                None, COLOUR_HALF, COLOUR_HALF, "crop-flip", _image_folder, training=SMALL_IMAGES),
        DataSet("imagenet", "ImageNet unpacked as train/<class>/* and val/<class>/*, resized to 256, cropped to 224",
                224, IMAGENET_MEAN, IMAGENET_STD, "resized-crop-flip", _imagenet,
                margin=256 / 224, training=LARGE_IMAGES),
        DataSet("nmnist", "70,000 digits, event camera, 34 x 34, 10 classes; through tonic",
                34, NO_EVENTS, TWO_EVENTS, "shift", _recorded(NMNIST), frames=10, training=GREY_DIGITS),
        DataSet("dvs-gesture", "gestures of 29 people, event camera, 128 x 128, 11 classes; through tonic",
                128, NO_EVENTS, FOUR_EVENTS, "shift", _recorded(DVS_GESTURE), frames=10, training=RECORDINGS),
        DataSet("cifar10-dvs", "10,000 images, event camera, 128 x 128, 10 classes; through tonic",
                128, NO_EVENTS, TWO_EVENTS, "crop-flip", _recorded(CIFAR10_DVS), frames=10, training=RECORDINGS),
    )
}  # fmt: skip
