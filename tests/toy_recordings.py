"""Small recordings of events in the files that the event data sets come in."""

import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest

from hybridsnn.data.recordings import GESTURES, OBJECTS

READERS = {"nmnist": ("tonic",), "cifar10-dvs": ("tonic", "aedat")}  # packages that read them
Recorded = list[tuple[int, int, int, int]]  # (time, polarity, row, column) of each event


def skip_without_reader(name: str) -> None:
    for package in READERS.get(name, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")


def some_events(side: int, count: int, seed: int) -> Recorded:
    random = np.random.default_rng(seed)
    times = np.sort(random.integers(0, 300_000, count))
    columns = [random.integers(0, limit, count) for limit in (2, side, side)]
    return [(int(t), *(int(column[place]) for column in columns)) for place, t in enumerate(times)]  # type: ignore[misc]


def write_atis(path: Path, events: Recorded) -> None:
    """40 bits for each event: column, row, polarity and 23 bits of time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(bytes([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255]) for t, p, y, x in events))


def write_nmnist(root: Path, *, per_class: int = 2, test: int = 1, count: int = 300) -> Path:
    for part, number in (("Train", per_class), ("Test", test)):
        for digit in range(10):
            for index in range(number):
                events = some_events(34, count, seed=1000 * number + 10 * digit + index)
                write_atis(root / "NMNIST" / part / str(digit) / f"{index + 1:05d}.bin", events)
    return root


def write_gestures(root: Path) -> Path:
    for part, users in (("ibmGestureTrain", (1, 2)), ("ibmGestureTest", (24,))):
        for user in users:
            folder = root / "DVSGesture" / part / f"user{user:02d}_led"
            folder.mkdir(parents=True)
            for label in range(len(GESTURES)):
                events = some_events(128, 400, seed=100 * user + label)
                np.save(folder / f"{label}.npy", np.array([[x, y, p, t // 1000] for t, p, y, x in events]))
    return root


def write_aedat4(path: Path, events: Recorded) -> None:
    """Without compression; flatbuffers are laid out by hand: positions count from the size before each."""
    description = b"""<dv version="2.0"><node name="outInfo"><node name="0">
        <attr key="typeIdentifier" type="string">EVTS</attr><node name="info">
        <attr key="sizeX" type="int">128</attr><attr key="sizeY" type="int">128</attr></node></node></node></dv>"""
    # Offset to the table, identifier, sizes of the field list and the table, places of the fields, the table.
    header = struct.pack("<I4s5H2xiI", 20, b"IOHE", 10, 8, 0, 0, 4, 12, 4)
    header += struct.pack("<I", len(description)) + description + bytes(4 - len(description) % 4)
    packet = struct.pack("<I4s3H2xiII", 16, b"EVTS", 6, 8, 4, 8, 4, len(events))
    packet += b"".join(struct.pack("<qhhB3x", t, x, y, p) for t, p, y, x in events)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"#!AER-DAT4.0\r\n" + struct.pack("<I", len(header)) + header
        + struct.pack("<III", 0, len(packet) + 4, len(packet)) + packet
    )  # fmt: skip


def write_cifar10_dvs(root: Path, *, per_class: int = 10) -> Path:
    for label, name in enumerate(OBJECTS):
        for index in range(per_class):
            path = root / "CIFAR10DVS" / name / f"cifar10_{name}_{index}.aedat4"
            write_aedat4(path, some_events(128, 200 + index, seed=100 * label + index))
    return root
