"""Published data sets of event cameras in the layout of tonic, which reads and downloads them."""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hybridsnn.data.events import VERSION, Binning, EventImages, Events, cached
from hybridsnn.data.images import ImageData, image_data
from hybridsnn.errors import ConfigError, DataError

EXTRA = "pip install 'hybridsnn[tonic]'"
Listing = list[tuple[str, int]]  # files, relative to the folder of the data set, and their labels


@dataclass(frozen=True)
class Recordings:
    """A data set of tonic.

    Attributes:
        name: in `DATASETS`.
        tonic_name: of the class in `tonic.datasets`, and of its folder.
        sensor: height and width of the sensor, pixels.
        classes: the name of each label.
        layout: description of the files in that folder, for messages.
        splits: lists the training and the test files of a folder, each in a fixed order; empty if there are none.
        read: reads one of these files; may raise any exception.
        parts: arguments of tonic's class to download each part.
    """

    name: str
    tonic_name: str
    sensor: int
    classes: tuple[str, ...]
    layout: str
    splits: Callable[[Path], tuple[Listing, Listing]]
    read: Callable[[Path], Events]
    parts: tuple[dict[str, bool], ...] = ({"train": True}, {"train": False})

    def load(self, root: Path, download: bool, binning: Binning, cache: Path, say: Callable[[str], None]) -> ImageData:
        """Training and test images, mapped from files in `cache`, which the first call writes.

        Later calls look only at the names and sizes of the recordings.

        Args:
            root: tonic's folder of data sets, or that of this data set.
            download: fetch missing recordings.
            cache: folder of binned recordings.
            say: receives a message when recordings are being binned.

        Raises:
            ConfigError: if frames larger than the sensor are asked for.
            DataError: if recordings are missing, damaged or could not be fetched, or tonic is not installed.
        """
        if binning.size > self.sensor:
            raise ConfigError(
                f"size: got {binning.size}, but '{self.name}' was recorded with {self.sensor} x {self.sensor} pixels, "
                f"which can only be merged. Use {self.sensor} or less"
            )
        listings = self._listings(root)
        if download and not all(listings):
            self._fetch(root)
            listings = self._listings(root)
        if not all(listings):
            raise self._missing(root)
        train, test = (
            self._images(self._folder(root), part, listing, binning, cache, say)
            for part, listing in zip(("train", "test"), listings, strict=True)
        )
        return image_data(self.name, train, test, self.classes)

    def _folder(self, root: Path) -> Path:
        below = root / self.tonic_name
        return below if below.is_dir() else root

    def _listings(self, root: Path) -> tuple[Listing, Listing]:
        return self.splits(self._folder(root))

    def _images(
        self, folder: Path, part: str, listing: Listing, binning: Binning, cache: Path, say: Callable[[str], None]
    ) -> EventImages:
        digest = hashlib.sha256(repr((VERSION, self.name, astuple(binning))).encode())
        for path, label in listing:
            digest.update(f"{path}\n{label}\n{(folder / path).stat().st_size}\n".encode())
        source = digest.hexdigest()
        file = cache / f"{self.name}-{part}-{binning.frames}-{binning.by}-{binning.size}-{source[:16]}.npy"

        def frames() -> Iterator[np.ndarray]:
            say(f"{self.name}: binning {len(listing)} recordings ({part}) into {binning.frames} frames each, once")
            for path, _ in listing:
                yield binning(self._events(folder / path), self.sensor)

        array = cached(file, (len(listing), binning.frames, 2, binning.size, binning.size), frames)
        return EventImages(array, torch.tensor([label for _, label in listing]), source)

    def _events(self, path: Path) -> Events:
        try:
            events = self.read(path)
            _check(events, self.sensor)
        except ImportError as error:
            raise self._not_installed(error) from error
        except Exception as error:  # readers raise any exception, Exception itself included
            raise DataError(
                f"{path}: not a readable recording ({_reason(error)}). Replace or remove this file"
            ) from error
        return events

    def _fetch(self, root: Path) -> None:
        try:
            from tonic import datasets

            for part in self.parts:
                getattr(datasets, self.tonic_name)(str(root), **part)
        except ImportError as error:
            raise self._not_installed(error) from error
        except Exception as error:  # of the network, of archives, of the disk
            raise DataError(
                f"{self.name}: could not fetch {self.layout} into {root / self.tonic_name}: {_reason(error)}. "
                "Put them there yourself"
            ) from error

    def _missing(self, root: Path) -> DataError:
        return DataError(
            f"{self.name}: no recordings in {root / self.tonic_name}; expected {self.layout}. "
            f"Run: hybridsnn train-ann --dataset {self.name} --data {root} --download"
        )

    def _not_installed(self, error: ImportError) -> DataError:
        return DataError(f"{self.name}: needs tonic ({_reason(error)}). Run: {EXTRA}")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _check(events: Events, sensor: int) -> None:
    if not len(events.times):
        raise ValueError("it holds no events")
    for values, limit in ((events.columns, sensor), (events.rows, sensor), (events.polarities, 2)):
        if values.min() < 0 or values.max() >= limit:
            raise ValueError(f"an event lies outside the sensor of {sensor} x {sensor} pixels and 2 polarities")


def _fields(recording: Any) -> Events:
    """The events of a structured array of tonic."""
    return Events(*(recording[field].astype(np.int64) for field in ("t", "p", "y", "x")))


def _names(folder: Path, suffix: str = "") -> list[str]:
    """The names in a folder, in natural order: 10 comes after 9."""
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError:
        return []
    chosen = [name for name in names if name.endswith(suffix) and not name.startswith(".")]
    return sorted(chosen, key=lambda name: re.sub(r"\d+", lambda digits: digits[0].zfill(12), name))


DIGITS = tuple(str(digit) for digit in range(10))
GESTURES = (
    "hand clapping", "right hand wave", "left hand wave", "right arm clockwise", "right arm counter-clockwise",
    "left arm clockwise", "left arm counter-clockwise", "arm roll", "air drums", "air guitar", "other gestures",
)  # fmt: skip
OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _nmnist_splits(folder: Path) -> tuple[Listing, Listing]:
    train, test = (
        [
            (f"{part}/{digit}/{name}", label)
            for label, digit in enumerate(DIGITS)
            for name in _names(folder / part / digit, ".bin")
        ]
        for part in ("Train", "Test")
    )
    return train, test


def _read_nmnist(path: Path) -> Events:
    from tonic.io import read_mnist_file

    if path.stat().st_size % 5:  # an event has 40 bits; the reader would drop the rest
        raise ValueError(f"{path.stat().st_size} bytes, not a multiple of 5")
    return _fields(read_mnist_file(str(path), np.dtype([(field, np.int64) for field in "xytp"])))


def _gesture_splits(folder: Path) -> tuple[Listing, Listing]:
    """The files are called by their labels: user01_led/0.npy to 10.npy."""
    labels = {f"{label}.npy": label for label in range(len(GESTURES))}
    train, test = (
        [
            (f"{part}/{user}/{name}", labels[name])
            for user in _names(folder / part)
            for name in _names(folder / part / user)
            if name in labels
        ]
        for part in ("ibmGestureTrain", "ibmGestureTest")
    )
    return train, test


def _read_gesture(path: Path) -> Events:
    columns, rows, polarities, times = np.load(path, allow_pickle=False).astype(np.int64).T
    return Events(times, polarities, rows, columns)


def _cifar_splits(folder: Path) -> tuple[Listing, Listing]:
    """There is no official split; the usual one: of each class the first 900 to train on, the last 100 to test on."""
    train: Listing = []
    test: Listing = []
    for label, name in enumerate(OBJECTS):
        files = [(f"{name}/{file}", label) for file in _names(folder / name, ".aedat4")]
        border = len(files) * 9 // 10
        train += files[:border]
        test += files[border:]
    return train, test


def _read_cifar(path: Path) -> Events:
    from tonic.io import read_aedat4

    try:
        recording = read_aedat4(str(path))
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # a damaged file raises this from Rust, and it is no Exception
            raise ValueError(str(error)) from error
        raise
    recording.dtype.names = ["t", "x", "y", "p"]  # aedat calls the last one 'on'
    return _fields(recording)


NMNIST = Recordings(
    "nmnist", "NMNIST", 34, DIGITS, "Train/<digit>/*.bin and Test/<digit>/*.bin", _nmnist_splits, _read_nmnist
)
DVS_GESTURE = Recordings(
    "dvs-gesture",
    "DVSGesture",
    128,
    GESTURES,
    "ibmGestureTrain/<user>/<label>.npy and ibmGestureTest/<user>/<label>.npy",
    _gesture_splits,
    _read_gesture,
)
CIFAR10_DVS = Recordings(
    "cifar10-dvs", "CIFAR10DVS", 128, OBJECTS, "<class>/*.aedat4", _cifar_splits, _read_cifar, parts=({},)
)
