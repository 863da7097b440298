"""Recordings of event cameras as frames of event counts, binned once and cached on disk."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

VERSION = 1  # of the binning; a new number invalidates cached files


@dataclass(frozen=True, eq=False)
class Events:
    """One recording, all int64 [N], in the order recorded.

    Attributes:
        times: in any unit.
        polarities: 0 for darker, 1 for brighter.
        rows, columns: pixel of the sensor.
    """

    times: np.ndarray
    polarities: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


@dataclass(frozen=True)
class Binning:
    """How a recording is binned into frames.

    Attributes:
        frames: number of frames, T.
        by: in `BINNINGS`.
        size: height and width of the frames, pixels; at most those of the sensor, whose pixels are then merged.
    """

    frames: int
    by: str
    size: int

    def __call__(self, events: Events, sensor: int) -> np.ndarray:
        """Counts of events: uint8 [T, 2, size, size]; a count above 255 is clipped.

        Args:
            sensor: side of the sensor, pixels.
        """
        shape = (self.frames, 2, self.size, self.size)
        rows, columns = (where * self.size // sensor for where in (events.rows, events.columns))
        frame = BINNINGS[self.by](events.times, self.frames)
        places = ((frame * 2 + events.polarities) * self.size + rows) * self.size + columns
        counts = np.bincount(places, minlength=self.frames * 2 * self.size**2)
        return np.minimum(counts, 255).astype(np.uint8).reshape(shape)


def _by_time(times: np.ndarray, frames: int) -> np.ndarray:
    if not len(times):
        return times
    elapsed = times - times.min()
    # The last event ends the last window instead of opening one more.
    return np.minimum(elapsed * frames // max(int(elapsed.max()), 1), frames - 1)


def _by_count(times: np.ndarray, frames: int) -> np.ndarray:
    return np.arange(len(times)) * frames // max(len(times), 1)


# The frame, 0 to T - 1, of every event: (times int64 [N], T) -> int64 [N].
BINNINGS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"time": _by_time, "count": _by_count}


@dataclass(frozen=True, eq=False)
class EventImages:
    """`Images` that are frames over time: a batch is uint8 [B, T, C, H, W].

    Attributes:
        frames: uint8 [N, T, C, H, W], in memory or mapped from a file.
        labels: int64 [N].
        source: a hash that identifies the recordings and their binning.
    """

    frames: np.ndarray
    labels: Tensor
    source: str

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.frames.shape[2:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, positions: Tensor) -> Tensor:
        return torch.from_numpy(self.frames[positions.numpy()])

    def identity(self) -> Iterator[bytes | memoryview]:
        yield self.source.encode()


def cached(path: Path, shape: tuple[int, ...], make: Callable[[], Iterable[np.ndarray]]) -> np.ndarray:
    """The uint8 array of this shape in a .npy file, mapped into memory.

    If the file is missing or damaged, it is first written from the rows that `make` yields. Where it cannot be
    written, the array stays in memory.
    """
    try:
        return _mapped(path, shape)
    except (OSError, ValueError):
        pass  # missing, truncated, or another array
    try:
        _write(path, shape, make())
        return _mapped(path, shape)
    except OSError:
        return np.stack(list(make()))


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    array = np.lib.format.open_memmap(path, mode="r")
    if array.shape != shape or array.dtype != np.uint8:
        raise ValueError(f"{path}: {array.dtype} {array.shape}, not uint8 {shape}")
    return array


def _write(path: Path, shape: tuple[int, ...], rows: Iterable[np.ndarray]) -> None:
    """Write row by row, so that memory stays small, under a temporary name, so that no reader opens a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for row in rows:
                file.write(row.data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
