"""Recordings of events: binning against a plain loop, files kept on disk, batches, the encoder, and a network."""

import json
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import fail, succeed
from toy_recordings import (
    Recorded,
    skip_without_reader,
    some_events,
    write_atis,
    write_cifar10_dvs,
    write_gestures,
    write_nmnist,
)

from hybridsnn.artifacts import Artifact
from hybridsnn.data import (
    AUGMENTATIONS,
    BINNINGS,
    DATASETS,
    Batches,
    Binning,
    EventImages,
    Events,
    ImageData,
    Preprocessing,
    default_folder,
    load,
)
from hybridsnn.encoders import ENCODERS, Encoder
from hybridsnn.errors import ConfigError, DataError, HybridSNNError
from hybridsnn.stages.networks import ModelDescription, describe

ARCHIVE = Path(__file__).parents[2] / "shared" / "data" / "nmnist-1k.tar.xz"
WRITERS: dict[str, Callable[[Path], Path]] = {
    "nmnist": write_nmnist,
    "dvs-gesture": write_gestures,
    "cifar10-dvs": write_cifar10_dvs,
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HYBRIDSNN_DATA", str(tmp_path_factory.mktemp("data")))
    return default_folder() / "events"


def message(error: pytest.ExceptionInfo[HybridSNNError]) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


def events_of(recorded: Recorded) -> Events:
    return Events(*np.array(recorded, dtype=np.int64).reshape(-1, 4).T)


def everything(data: ImageData) -> torch.Tensor:
    return torch.cat([images.batch(torch.arange(len(images))) for images in (data.train, data.test)])


# Binning


def by_hand(recorded: Recorded, frames: int, by: str, sensor: int, size: int) -> np.ndarray:
    """The definition: windows of time are closed at their beginning, the last one at its end too."""
    counts = np.zeros((frames, 2, size, size), dtype=np.int64)
    first, last = (recorded[0][0], recorded[-1][0]) if recorded else (0, 0)
    for place, (time, polarity, row, column) in enumerate(recorded):
        if by == "count":
            frame = max(t for t in range(frames) if place * frames >= t * len(recorded))
        else:
            frame = max(t for t in range(frames) if (time - first) * frames >= t * (last - first) > 0 or t == 0)
        counts[frame, polarity, row * size // sensor, column * size // sensor] += 1
    return counts.clip(max=255).astype(np.uint8)


RECORDINGS: dict[str, Recorded] = {
    "none": [],
    "one": [(7, 1, 3, 2)],
    "two": [(0, 0, 0, 0), (10, 1, 9, 9)],
    "at one time": [(5, index % 2, index % 10, 3) for index in range(9)],
    "on the edges": [(time, 1, 4, 5) for time in (0, 1, 2, 3, 4, 5, 6, 8, 12)],
    "many in one place": [(time, 0, 1, 1) for time in range(600)],
    "all over": some_events(10, 400, seed=0),
    "after long": [
        (10**15 + time, polarity, row, column) for time, polarity, row, column in some_events(10, 50, seed=1)
    ],
}


@pytest.mark.parametrize("by", BINNINGS)
def test_binning_is_the_plain_loop(by: str) -> None:
    for name, recorded in RECORDINGS.items():
        for frames, size in ((1, 10), (3, 7), (4, 3), (10, 10), (10, 1)):
            found = Binning(frames, by, size)(events_of(recorded), sensor=10)
            assert found.dtype == np.uint8 and found.shape == (frames, 2, size, size)
            expected = by_hand(recorded, frames, by, 10, size)
            assert np.array_equal(found, expected), f"{name} in {frames} frames of {size} x {size}"


def test_no_event_is_lost_and_polarities_stay_apart() -> None:
    recorded = RECORDINGS["all over"]
    brighter = sum(polarity for _, polarity, _, _ in recorded)
    for by in BINNINGS:
        whole = Binning(1, by, 10)(events_of(recorded), 10)
        assert whole.sum((0, 2, 3)).tolist() == [len(recorded) - brighter, brighter]
        for frames in (2, 7):
            assert np.array_equal(Binning(frames, by, 10)(events_of(recorded), 10).sum(0, keepdims=True), whole)
        quarters = whole.reshape(1, 2, 5, 2, 5, 2).sum((3, 5))
        assert np.array_equal(Binning(1, by, 5)(events_of(recorded), 10), quarters)


def test_known_frames() -> None:
    """Nine events in three frames: windows of 4 from 0 to 12, then three at a time; an end belongs to what follows."""
    events = events_of(RECORDINGS["on the edges"])
    assert Binning(3, "time", 10)(events, 10)[:, 1, 4, 5].tolist() == [4, 3, 2]
    assert Binning(3, "count", 10)(events, 10)[:, 1, 4, 5].tolist() == [3, 3, 3]
    assert Binning(2, "time", 10)(events_of(RECORDINGS["at one time"]), 10).sum((1, 2, 3)).tolist() == [9, 0]
    assert Binning(2, "time", 10)(events_of(RECORDINGS["many in one place"]), 10)[:, 0, 1, 1].tolist() == [255, 255]


def test_binning_agrees_with_tonic_where_tonic_loses_nothing() -> None:
    skip_without_reader("nmnist")
    from tonic.transforms import ToFrame

    recorded = [(place, *event[1:]) for place, event in enumerate(some_events(10, 400, seed=2))]
    recorded.append((400, 1, 0, 0))  # tonic leaves out the last
    structured = np.array(
        [(t, p, y, x) for t, p, y, x in recorded], dtype=[(field, np.int64) for field in ("t", "p", "y", "x")]
    )
    by_time = Binning(8, "time", 10)(events_of(recorded), 10)
    by_time[-1, 1, 0, 0] -= 1
    assert np.array_equal(by_time, ToFrame(sensor_size=(10, 10, 2), n_time_bins=8)(structured))
    by_count = Binning(8, "count", 10)(events_of(recorded[:400]), 10)
    assert np.array_equal(by_count, ToFrame(sensor_size=(10, 10, 2), n_event_bins=8)(structured[:400]))


# Data sets


@pytest.mark.parametrize("name", WRITERS)
def test_files_are_read_event_by_event(name: str, tmp_path: Path) -> None:
    """Rows, columns, polarities, times and labels, of the second recording of class 3 that is trained on."""
    skip_without_reader(name)
    data = load(name, folder=WRITERS[name](tmp_path), event_frames=4)
    places = (data.train.labels == 3).nonzero().flatten()
    side = data.train.shape[-1]
    recorded = {
        "nmnist": lambda: some_events(34, 300, seed=2031),
        "dvs-gesture": lambda: [(t // 1000, *rest) for t, *rest in some_events(128, 400, seed=203)],
        "cifar10-dvs": lambda: some_events(128, 201, seed=301),
    }[name]()
    expected = by_hand(recorded, 4, "time", side, side)
    assert np.array_equal(data.train.batch(places[1:2])[0].numpy(), expected)


def test_real_recordings(tmp_path: Path) -> None:
    if not ARCHIVE.is_file():
        pytest.skip(f"needs recordings in {os.path.relpath(ARCHIVE)}")
    skip_without_reader("nmnist")
    parts = {"Train": 6, "Test": 3}
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:  # only as far as needed: unpacking all of it takes long
            part = next((part for part in parts if f"{part}/" in member.name), None)
            if part and member.isfile() and parts[part]:
                parts[part] -= 1
                archive.extract(member, tmp_path, filter="data")
            if not any(parts.values()):
                break
    data = load("nmnist", folder=tmp_path)
    assert (len(data.train), len(data.test)) == (6, 3)
    frames = everything(data)
    files = sorted((tmp_path / "Train").rglob("*.bin")) + sorted((tmp_path / "Test").rglob("*.bin"))
    sizes = [path.stat().st_size / 5 for path in files]
    counts = frames.flatten(1).sum(1).tolist()
    # A few of the 40-bit words only carry the clock on.
    assert all(0.9 * size < count <= size for size, count in zip(sizes, counts, strict=True))
    assert (frames.flatten(2).sum(2) > 0).all()


def test_the_folder_may_be_the_data_set_itself(tmp_path: Path) -> None:
    skip_without_reader("nmnist")
    write_nmnist(tmp_path)
    outer, inner = load("nmnist", folder=tmp_path), load("nmnist", folder=tmp_path / "NMNIST")
    assert outer.fingerprint == inner.fingerprint
    assert torch.equal(everything(outer), everything(inner))


def test_cifar_is_split_by_number_in_each_class(tmp_path: Path) -> None:
    """The tenth of ten files, called 9, is tested on; of twenty 18 and 19, though '2' sorts after '18'."""
    skip_without_reader("cifar10-dvs")
    data = load("cifar10-dvs", folder=write_cifar10_dvs(tmp_path, per_class=20), size=16)
    assert data.train.labels.tolist() == [label for label in range(10) for _ in range(18)]
    assert data.test.labels.tolist() == [label for label in range(10) for _ in range(2)]
    counts = data.test.batch(torch.arange(2)).flatten(1).sum(1).tolist()
    assert counts == [218, 219]  # as many as the file's number above 200


def test_frames_binnings_and_sizes_make_other_data(tmp_path: Path) -> None:
    write_gestures(tmp_path)
    variants: list[dict[str, Any]] = [
        {}, {"event_frames": 5}, {"event_binning": "count"}, {"size": 32}, {"size": 32, "event_frames": 5}
    ]  # fmt: skip
    found = [load("dvs-gesture", folder=tmp_path, **variant) for variant in variants]
    assert len({data.fingerprint for data in found}) == len(variants)
    assert [everything(data).sum().item() for data in found] == [33 * 400] * len(variants)
    assert found[4].train.batch(torch.tensor([0])).shape == (1, 5, 2, 32, 32)


# Files kept on disk


def test_a_second_opening_reads_no_recording(tmp_path: Path, cache: Path) -> None:
    said: list[str] = []
    first = load("dvs-gesture", folder=write_gestures(tmp_path), say=said.append)
    assert len(said) == 2 and "22 recordings" in said[0]
    files = sorted(cache.iterdir())
    assert len(files) == 2 and all(file.suffix == ".npy" for file in files)
    frames = everything(first)
    for path in (tmp_path / "DVSGesture").rglob("*.npy"):
        path.write_bytes(bytes(path.stat().st_size))  # nothing that could be read
    second = load("dvs-gesture", folder=tmp_path, say=said.append)
    assert len(said) == 2
    assert torch.equal(everything(second), frames)
    assert torch.equal(second.train.labels, first.train.labels)
    assert second.fingerprint == first.fingerprint
    assert isinstance(second.train, EventImages) and isinstance(second.train.frames, np.memmap)


def test_a_changed_recording_is_binned_anew(tmp_path: Path, cache: Path) -> None:
    path = write_gestures(tmp_path) / "DVSGesture" / "ibmGestureTest" / "user24_led" / "3.npy"
    first = load("dvs-gesture", folder=tmp_path)
    np.save(path, np.load(path)[:-7])
    second = load("dvs-gesture", folder=tmp_path)
    assert second.fingerprint != first.fingerprint
    assert everything(second).sum() == everything(first).sum() - 7
    assert len(list(cache.iterdir())) == 3  # the training part stays


def test_a_damaged_file_is_made_again(tmp_path: Path, cache: Path) -> None:
    write_gestures(tmp_path)
    frames = everything(load("dvs-gesture", folder=tmp_path, size=32))
    for damage in ("cut", "empty", "junk", "shape"):
        for file in cache.iterdir():
            content = file.read_bytes()
            file.unlink()  # what is mapped stays as it is
            if damage == "shape":
                np.save(file, np.zeros((3, 4), dtype=np.uint8))
            else:
                junk = b"\x93NUMPY" + bytes(range(200))
                file.write_bytes({"cut": content[:-1000], "empty": b"", "junk": junk}[damage])
        said: list[str] = []
        again = load("dvs-gesture", folder=tmp_path, size=32, say=said.append)
        assert torch.equal(everything(again), frames), damage
        assert len(said) == 2, damage


def test_without_a_place_to_write_frames_stay_in_memory(tmp_path: Path, cache: Path) -> None:
    write_gestures(tmp_path)
    cache.write_text("in the way of a folder")
    inside = load("dvs-gesture", folder=tmp_path)
    assert isinstance(inside.train, EventImages) and not isinstance(inside.train.frames, np.memmap)
    cache.unlink()
    kept = load("dvs-gesture", folder=tmp_path)
    assert inside.fingerprint == kept.fingerprint
    assert torch.equal(everything(inside), everything(kept))


def test_a_failure_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    path = write_gestures(tmp_path) / "DVSGesture" / "ibmGestureTrain" / "user02_led" / "10.npy"
    path.write_bytes(b"junk")
    with pytest.raises(DataError):
        load("dvs-gesture", folder=tmp_path)
    assert list(cache.iterdir()) == []


# Errors


def test_a_damaged_digit_is_named(tmp_path: Path) -> None:
    skip_without_reader("nmnist")
    path = write_nmnist(tmp_path) / "NMNIST" / "Train" / "7" / "00002.bin"
    for content, reason in (
        (b"", "no events"),
        (bytes(7), "7 bytes, not a multiple of 5"),
        (bytes([34, 0, 0, 0, 0]), "outside the sensor"),
        (bytes([0, 99, 0, 0, 0]), "outside the sensor"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=reason) as error:
            load("nmnist", folder=tmp_path)
        assert str(path) in message(error)


def test_a_damaged_gesture_is_named(tmp_path: Path) -> None:
    path = write_gestures(tmp_path) / "DVSGesture" / "ibmGestureTest" / "user24_led" / "0.npy"
    letters, polarity = np.array([["a", "b", "c", "d"]]), np.array([[0, 0, 2, 0]])
    for array in (np.zeros((0, 4)), np.zeros((3, 5)), np.zeros(3), polarity, letters):
        np.save(path, array)
        with pytest.raises(DataError, match="not a readable recording") as error:
            load("dvs-gesture", folder=tmp_path, size=8)
        assert str(path) in message(error)


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    skip_without_reader("cifar10-dvs")
    path = write_cifar10_dvs(tmp_path, per_class=2) / "CIFAR10DVS" / "dog" / "cifar10_dog_1.aedat4"
    content = path.read_bytes()
    for cut in (0, 5, 100, 700, -1):
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match="not a readable recording") as error:
            load("cifar10-dvs", folder=tmp_path, size=8)
        assert str(path) in message(error)


def test_both_parts_must_be_there(tmp_path: Path) -> None:
    write_nmnist(tmp_path)
    for part in ("Train", "Test"):
        (tmp_path / "NMNIST" / part).rename(tmp_path / "elsewhere")
        with pytest.raises(
            DataError, match=r"expected Train/<digit>/\*.bin and Test/<digit>/\*.bin. Run: .*--download"
        ):
            load("nmnist", folder=tmp_path)
        (tmp_path / "elsewhere").rename(tmp_path / "NMNIST" / part)


def test_without_tonic_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nmnist(tmp_path)
    for module in ("tonic", "tonic.io"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=r"nmnist: needs tonic .*pip install 'hybridsnn\[tonic\]'") as error:
        load("nmnist", folder=tmp_path)
    message(error)
    with pytest.raises(DataError, match=r"pip install 'hybridsnn\[tonic\]'"):
        load("nmnist", folder=tmp_path / "nothing", download=True)


def test_pixels_cannot_be_divided(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="size: got 64, but 'nmnist' was recorded with 34 x 34") as error:
        load("nmnist", folder=tmp_path, size=64)
    message(error)


def test_pictures_cannot_be_binned() -> None:
    settings: list[dict[str, Any]] = [{"event_frames": 4}, {"event_binning": "time"}]
    for setting in settings:
        with pytest.raises(ConfigError, match=r"'digits' holds images, not events.*nmnist, dvs-gesture") as error:
            load("digits", **setting)
        assert message(error).startswith(next(iter(setting)))


def test_binnings_and_numbers_of_frames_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="event_frames: got 0"):
        load("nmnist", folder=tmp_path, event_frames=0)
    with pytest.raises(ConfigError, match=r"event_binning: unknown 'times'. Did you mean 'time'"):
        load("nmnist", folder=tmp_path, event_binning="times")


# Batches


def event_images(count: int, frames: int = 3, size: int = 16) -> EventImages:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 4, (count, frames, 2, size, size), dtype=np.uint8)
    return EventImages(pixels, torch.arange(count) % 3, "")


def test_counts_are_scaled() -> None:
    images = event_images(4)
    (batch,) = Batches(images, torch.arange(4), Preprocessing(16, (0.0, 0.0), (2 / 255, 4 / 255)), 4).epoch(0)
    counts = torch.from_numpy(images.frames).float()
    torch.testing.assert_close(batch.images, counts / torch.tensor([2.0, 4.0])[:, None, None])
    torch.testing.assert_close(batch.time_average, batch.images.sum(1) / 3)


def test_all_frames_of_a_recording_change_alike() -> None:
    """Recordings whose frames are all the same stay so, while recordings differ."""
    one = event_images(1).frames[:, :1]
    images = EventImages(np.tile(one, (8, 5, 1, 1, 1)), torch.zeros(8, dtype=torch.int64), "")
    preprocessing = Preprocessing(16, (0.0, 0.0), (1 / 255, 1 / 255))
    for name in AUGMENTATIONS:
        (batch,) = Batches(images, torch.arange(8), preprocessing, 8, augmentation=name, seed=0).epoch(0)
        assert batch.images.shape == (8, 5, 2, 16, 16)
        assert (batch.images == batch.images[:, :1]).all(), name
        assert name == "none" or (batch.images[1:] != batch.images[:1]).flatten(1).any(1).all(), name


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_frames_are_augmented_as_pictures_are(name: str) -> None:
    """Frame by frame with the same random numbers; neither frames nor polarities get mixed up."""
    images = event_images(6)
    preprocessing = Preprocessing(16, (0.0, 0.0), (1 / 255, 1 / 255))

    def augmented(frames: np.ndarray) -> torch.Tensor:
        part = EventImages(frames, images.labels, "")
        (batch,) = Batches(part, torch.arange(6), preprocessing, 6, augmentation=name, seed=3).epoch(0)
        return batch.images

    whole = augmented(images.frames)
    for t in range(3):
        assert torch.equal(augmented(images.frames[:, t : t + 1]), whole[:, t : t + 1])


def test_digits_and_gestures_are_not_mirrored_by_default() -> None:
    assert DATASETS["nmnist"].augmentation == DATASETS["dvs-gesture"].augmentation == "shift"


# The encoder


def test_steps_are_frames() -> None:
    images = torch.randn(2, 7, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    indices = torch.arange(2)
    encoder = Encoder("event")
    assert torch.equal(encoder(images, indices, 7), images.transpose(0, 1))
    assert torch.equal(encoder(images, indices, 3, start=2), images[:, 2:5].transpose(0, 1))
    chunks = [encoder(images, indices, steps, start=start) for start, steps in ((0, 3), (3, 3), (6, 1))]
    assert torch.equal(torch.cat(chunks), encoder(images, indices, 7))


def test_more_steps_than_frames() -> None:
    for timesteps, start in ((8, 0), (2, 6), (1, 7)):
        with pytest.raises(ConfigError, match=r"timesteps: got 8, but .* 7 frames.*--event-frames 8") as error:
            Encoder("event")(torch.zeros(2, 7, 2, 4, 4), torch.arange(2), timesteps, start=start)
        message(error)


def test_codes_refuse_what_they_do_not_encode() -> None:
    for name, coding in ENCODERS.items():
        wrong = torch.zeros(2, 2, 4, 4) if coding.events else torch.zeros(2, 7, 2, 4, 4)
        with pytest.raises(ConfigError, match=f"encoder: '{name}' got .*, which it does not encode. Use: ") as error:
            Encoder(name)(wrong, torch.arange(2), 3)
        choices = message(error).split("Use: ")[1].split(", ")
        assert choices == [other for other in ENCODERS if ENCODERS[other].events != coding.events]


# A network


SMALL = ("--width", "0.25", "--image-size", "8", "--validation", "0.2", "--batch-size", "8")


def test_a_network_for_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_reader("nmnist")
    monkeypatch.chdir(tmp_path)
    for digit in range(10):  # at different places, so that there is something to learn
        for part, number in (("Train", 6), ("Test", 2)):
            for index in range(number):
                corner = [(t, p, y // 4 + 8 * (digit // 4), x // 4 + 8 * (digit % 4))
                          for t, p, y, x in some_events(34, 400, seed=100 * number + index)]  # fmt: skip
                write_atis(tmp_path / "NMNIST" / part / str(digit) / f"{index}.bin", corner)
    options = ("--dataset", "nmnist", "--data", ".", "--network", "digits-cnn", *SMALL)
    succeed("train-ann", "--epochs", "0", "--event-frames", "4", "--event-binning", "count", *options, "--name", "raw")
    raw = describe(Artifact.open(tmp_path / "checkpoints" / "default" / "raw"))
    assert (raw.data.event_frames, raw.data.event_binning) == (4, "count")
    assert raw.network.input_shape == (2, 8, 8)

    succeed("train-ann", "--epochs", "12", "--augmentation", "none", "--batch-norm", *options)
    own = describe(Artifact.open(tmp_path / "checkpoints" / "default" / "train-ann")).data
    assert (own.event_frames, own.event_binning) == (10, "time")
    told = succeed("evaluate", "--from", "train-ann", "--data", ".")
    assert float(told.split("test accuracy: ")[1].split(" %")[0]) > 80

    succeed("evaluate", "--from", "raw", "--data", ".")
    (tmp_path / "NMNIST" / "Train" / "0" / "0.bin").unlink()
    assert "was made with nmnist" in fail("evaluate", "--from", "raw", "--data", ".", "--seed", "1")


@pytest.mark.parametrize("events", [{}, {"events": None}, {"events": {"frames": 5, "binning": "count"}}])
def test_descriptions_of_earlier_versions_still_load(
    events: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is known of the data was in one mapping, and what is known of events in one inside it."""
    monkeypatch.chdir(tmp_path)
    succeed("train-ann", "--epochs", "0", "--width", "0.25", "--images", "500", "--seed", "3")
    artifact = Artifact.open(tmp_path / "checkpoints" / "default" / "train-ann")
    description = describe(artifact)
    content = json.loads((artifact.path / "model.json").read_text())
    data, preprocessing = content.pop("data"), content.pop("preprocessing")
    assert (data.pop("event_frames"), data.pop("event_binning")) == (None, None)
    content["images"] = {
        "count": data.pop("images"), "split_seed": data.pop("seed"), **data, "classes": content.pop("classes"),
        "mean": preprocessing["mean"], "std": preprocessing["std"], **events,
    }  # fmt: skip
    if given := events.get("events"):
        changed = {"event_frames": given["frames"], "event_binning": given["binning"]}
        description = description.model_copy(update={"data": description.data.model_copy(update=changed)})
    assert ModelDescription.model_validate_json(json.dumps(content)) == description


def test_the_command_line_refuses_to_bin_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "event_frames: got 5, but 'digits' holds images" in fail("train-ann", "--event-frames", "5")
    assert "Did you mean 'count'?" in fail("train-ann", "--dataset", "nmnist", "--event-binning", "counts")
