"""Data sets, splits, augmentations and batches."""

import gzip
import json
import math
import os
import pickle
import shutil
import struct
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from toy_recordings import skip_without_reader, write_cifar10_dvs, write_gestures, write_nmnist

from hybridsnn.data import (
    AUGMENTATIONS,
    DATASETS,
    Batches,
    FileImages,
    MemoryImages,
    Preprocessing,
    default_folder,
    held_on,
    image_data,
    load,
    split_validation,
)
from hybridsnn.data.augmentation import cut_out
from hybridsnn.errors import ConfigError, DataError, HybridSNNError

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"
HALF = (0.5, 0.5, 0.5)
GENERATOR = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return GENERATOR.integers(0, 256, shape, dtype=np.uint8)


def write_idx(root: Path, name: str, count: int = 20, *, packed: bool = False) -> Path:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        files = {
            f"{part}-images-idx3-ubyte": struct.pack(">4i", 0x803, count, 28, 28) + noise(count, 28, 28).tobytes(),
            f"{part}-labels-idx1-ubyte": struct.pack(">2i", 0x801, count) + bytes(i % 10 for i in range(count)),
        }
        for file, content in files.items():
            if packed:
                (raw / f"{file}.gz").write_bytes(gzip.compress(content))
            else:
                (raw / file).write_bytes(content)
    return root


def write_cifar(root: Path, folder: str, parts: dict[str, int], meta: str, key: str, names: str, classes: int) -> Path:
    (root / folder).mkdir()
    for file, count in parts.items():
        entry = {"data": noise(count, 3 * 32 * 32), key: [i % classes for i in range(count)]}
        (root / folder / file).write_bytes(pickle.dumps(entry))
    (root / folder / meta).write_bytes(pickle.dumps({names: [f"class{i}" for i in range(classes)]}))
    return root


def write_cifar10(root: Path) -> Path:
    parts = {f"data_batch_{number}": 10 for number in range(1, 6)} | {"test_batch": 10}
    return write_cifar(root, "cifar-10-batches-py", parts, "batches.meta", "labels", "label_names", 10)


def write_cifar100(root: Path) -> Path:
    parts = {"train": 200, "test": 100}
    return write_cifar(root, "cifar-100-python", parts, "meta", "fine_labels", "fine_label_names", 100)


def write_images(
    root: Path,
    *,
    test: str = "test",
    classes: tuple[str, ...] = ("cat", "dog"),
    sides: tuple[tuple[int, int], ...] = ((20, 20), (31, 20), (20, 45)),
) -> Path:
    for split in ("train", test):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for index, (width, height) in enumerate(sides):
                Image.fromarray(noise(height, width, 3)).save(folder / f"{index}.png")
    return root


SAMPLES: dict[str, Callable[[Path], Path | None]] = {
    "digits": lambda folder: None,
    "mnist": lambda folder: write_idx(folder, "MNIST"),
    "fashion-mnist": lambda folder: write_idx(folder, "FashionMNIST"),
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "imagefolder": write_images,
    "imagenet": lambda folder: write_images(folder, test="val"),
    "nmnist": write_nmnist,
    "dvs-gesture": write_gestures,
    "cifar10-dvs": write_cifar10_dvs,
}


@pytest.fixture
def any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision read a CIFAR that is not the published one; everything else is its own reader."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: Path(path).is_file())


def message(error: pytest.ExceptionInfo[HybridSNNError]) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


# Data sets


@pytest.mark.usefixtures("any_checksum")
@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("size", [None, 12])
def test_every_data_set_loads(name: str, size: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_reader(name)
    monkeypatch.setenv("HYBRIDSNN_DATA", str(tmp_path / "cache"))
    data_set = DATASETS[name]
    time = () if data_set.frames is None else (data_set.frames,)
    data = load(name, folder=SAMPLES[name](tmp_path), size=size)
    preprocessing = data_set.preprocessing(data)
    assert preprocessing.size == size or (size is None and preprocessing.size == (data_set.size or 20))
    for images in (data.train, data.test):
        stored = round(preprocessing.size * data_set.margin)
        assert images.shape == (len(data_set.mean), stored, stored)
        assert len(images) == len(images.labels) > 0
        assert images.labels.dtype == torch.int64
        assert set(images.labels.tolist()) == set(range(len(data.classes)))
        raw = images.batch(torch.arange(len(images)))
        assert raw.dtype == torch.uint8 and raw.shape == (len(images), *time, *images.shape)
        assert raw.max() > raw.min()
        batch = next(Batches(images, torch.arange(len(images)), preprocessing, 4).epoch(0))
        seen = (len(data_set.mean), preprocessing.size, preprocessing.size)
        assert batch.images.shape == (4, *time, *seen) and batch.time_average.shape == (4, *seen)
    assert data_set.augmentation in AUGMENTATIONS
    assert data_set.name == name and data_set.summary
    assert data.name == (f"imagefolder:{tmp_path.name}" if name == "imagefolder" else name)


def test_digits_are_scaled_and_split_the_same_way_every_time() -> None:
    first, second = load("digits"), load("digits")
    assert first.fingerprint == second.fingerprint
    assert (len(first.train), len(first.test)) == (1438, 359)
    assert first.train.batch(torch.arange(1438)).unique().tolist() == [round(v * 255 / 16) for v in range(17)]
    assert first.test.labels.bincount().tolist() == pytest.approx([36] * 10, abs=1)


@pytest.mark.usefixtures("any_checksum")
def test_cifar_pixels_keep_their_places(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    entry = pickle.loads((tmp_path / "cifar-10-batches-py" / "test_batch").read_bytes())
    data = load("cifar10", folder=tmp_path)
    assert np.array_equal(data.test.batch(torch.arange(10)).numpy(), entry["data"].reshape(10, 3, 32, 32))


def test_real_mnist(tmp_path: Path) -> None:
    if not (REAL_DATA / "MNIST" / "raw").is_dir():
        pytest.skip(f"needs MNIST's files in {os.path.relpath(REAL_DATA)}")
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in (REAL_DATA / "MNIST" / "raw").glob("*.gz"):
        with gzip.open(packed) as source, (raw / packed.stem).open("wb") as target:
            shutil.copyfileobj(source, target)
    data = load("mnist", folder=tmp_path)
    assert (len(data.train), len(data.test)) == (60000, 10000)
    assert data.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_default_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HYBRIDSNN_DATA", str(tmp_path))
    write_idx(tmp_path, "MNIST")
    assert len(load("mnist").train) == 20
    monkeypatch.delenv("HYBRIDSNN_DATA")
    assert default_folder() == Path.home() / ".cache" / "hybridsnn" / "data"


# Errors


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_missing_data_is_one_line_with_a_remedy(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load(name, folder=tmp_path / "nothing")
    text = message(error)
    assert str(tmp_path / "nothing") in text and "expected" in text and "--data" in text
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("name", ["imagefolder", "imagenet"])
def test_image_folders_have_no_default(name: str) -> None:
    with pytest.raises(DataError, match=r"no folder given.*--data FOLDER") as error:
        load(name)
    message(error)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "nmnist", "dvs-gesture", "cifar10-dvs"])
def test_failed_download_says_what_to_put_where(name: str, tmp_path: Path) -> None:
    if DATASETS[name].frames is not None:
        pytest.importorskip("tonic")
    blocked = tmp_path / "file"
    blocked.write_text("in the way of a folder")
    with pytest.raises(DataError, match=f"{name}: could not fetch .* there yourself") as error:
        load(name, folder=blocked, download=True)
    message(error)


def test_unknown_names_and_sizes() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'digits'") as error:
        load("digit")
    message(error)
    with pytest.raises(ConfigError, match="size: got 0"):
        load("digits", size=0)


def test_packed_mnist_names_the_command(tmp_path: Path) -> None:
    write_idx(tmp_path, "MNIST", packed=True)
    with pytest.raises(DataError) as error:
        load("mnist", folder=tmp_path)
    assert f"gunzip --keep {tmp_path / 'MNIST' / 'raw'}/*.gz" in message(error)


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("damage", ["empty", "cut", "header", "junk"])
def test_damaged_mnist(file: str, damage: str, tmp_path: Path) -> None:
    path = write_idx(tmp_path, "MNIST") / "MNIST" / "raw" / file
    content = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "cut": content[:-5], "header": b"\x01\x02\x03\x04" + content[4:], "junk": bytes(range(7, 250))}[
            damage
        ]
    )
    with pytest.raises(DataError, match=r"MNIST/raw is damaged.*Remove the folder and run: .*--download") as error:
        load("mnist", folder=tmp_path)
    message(error)


def test_mnist_label_out_of_range(tmp_path: Path) -> None:
    path = write_idx(tmp_path, "MNIST") / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(DataError, match="a label is outside 0 to 9"):
        load("mnist", folder=tmp_path)


def test_cifar_with_another_checksum_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cifar-10-batches-py is damaged.*--dataset cifar10 .*--download") as error:
        load("cifar10", folder=write_cifar10(tmp_path))
    message(error)


@pytest.mark.usefixtures("any_checksum")
@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps({"labels": [1]}), pickle.dumps([1, 2])])
def test_damaged_cifar(content: bytes, tmp_path: Path) -> None:
    (write_cifar10(tmp_path) / "cifar-10-batches-py" / "data_batch_3").write_bytes(content)
    with pytest.raises(DataError, match="cifar-10-batches-py is damaged") as error:
        load("cifar10", folder=tmp_path)
    message(error)


@pytest.mark.parametrize("memory_limit", [None, 0])
@pytest.mark.parametrize("content", [b"", b"no image", "cut"])
def test_damaged_image_is_named(content: bytes | str, memory_limit: int | None, tmp_path: Path) -> None:
    path = write_images(tmp_path) / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:300] if content == "cut" else content)
    with pytest.raises(DataError) as error:
        images = load("imagefolder", folder=tmp_path, memory_limit=memory_limit).train
        list(Batches(images, torch.arange(len(images)), Preprocessing(20, HALF, HALF), 2).epoch(0))
    assert str(path) in message(error)


def test_first_image_damaged(tmp_path: Path) -> None:
    path = write_images(tmp_path) / "train" / "cat" / "0.png"
    path.write_bytes(b"")
    with pytest.raises(DataError, match="not a readable image"):
        load("imagefolder", folder=tmp_path)


def test_classes_must_agree(tmp_path: Path) -> None:
    (write_images(tmp_path) / "train" / "cow").mkdir()
    with pytest.raises(DataError, match="class 'cow' is in train but not in test") as error:
        load("imagefolder", folder=tmp_path)
    message(error)


def test_empty_class(tmp_path: Path) -> None:
    shutil.rmtree(write_images(tmp_path) / "test" / "dog")
    (tmp_path / "test" / "dog").mkdir()
    (tmp_path / "test" / "dog" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="dog holds no images") as error:
        load("imagefolder", folder=tmp_path)
    message(error)


@pytest.mark.parametrize("lacking", ["train", "test"])
def test_missing_part(lacking: str, tmp_path: Path) -> None:
    shutil.rmtree(write_images(tmp_path) / lacking)
    with pytest.raises(DataError, match=f"has no class folders in {lacking}") as error:
        load("imagefolder", folder=tmp_path)
    message(error)


# Images in folders


@pytest.mark.parametrize("size", [None, 13, 24])
def test_lazy_equals_in_memory(size: int | None, tmp_path: Path) -> None:
    write_images(tmp_path)
    eager, lazy = (load("imagefolder", folder=tmp_path, size=size, memory_limit=limit) for limit in (None, 0))
    assert type(eager.train) is not type(lazy.train)
    for one, other in ((eager.train, lazy.train), (eager.test, lazy.test)):
        positions = torch.tensor([4, 0, 5, 2])
        assert one.shape == other.shape
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.batch(positions), other.batch(positions))


def test_an_image_of_the_right_size_is_untouched_and_others_keep_their_centre(tmp_path: Path) -> None:
    write_images(tmp_path)
    images = load("imagefolder", folder=tmp_path).train.batch(torch.arange(3)).permute(0, 2, 3, 1).numpy()
    square, wide, high = (np.asarray(Image.open(tmp_path / "train" / "cat" / f"{index}.png")) for index in range(3))
    assert np.array_equal(images[0], square)
    assert np.array_equal(images[1], wide[:, 6:26])
    assert np.array_equal(images[2], high[12:32])


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    write_images(tmp_path)
    grey = noise(20, 20)
    Image.fromarray(grey).save(tmp_path / "train" / "cat" / "0.png")
    Image.fromarray(noise(20, 20, 4)).save(tmp_path / "train" / "cat" / "1.png")
    images = load("imagefolder", folder=tmp_path).train.batch(torch.arange(2))
    assert images.shape == (2, 3, 20, 20)
    assert np.array_equal(images[0].numpy(), np.stack([grey] * 3))


def test_images_in_deeper_folders_count_and_other_files_do_not(tmp_path: Path) -> None:
    deeper = write_images(tmp_path) / "train" / "cat" / "images"
    deeper.mkdir()
    Image.fromarray(noise(20, 20, 3)).save(deeper / "more.JPEG")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    assert load("imagefolder", folder=tmp_path).train.labels.tolist() == [0] * 4 + [1] * 3


def test_validation_folder_serves_as_test_set(tmp_path: Path) -> None:
    write_images(tmp_path, test="val")
    (tmp_path / "test").mkdir()  # ImageNet's test images have no labels, so no class folders
    assert len(load("imagefolder", folder=tmp_path).test) == 6


# Fingerprints


def test_fingerprint_changes_with_a_pixel_a_label_and_a_size() -> None:
    pixels, labels = torch.from_numpy(noise(6, 1, 4, 4)), torch.tensor([0, 1, 0, 1, 0, 1])
    original = MemoryImages(pixels, labels)
    other_pixel, other_label = pixels.clone(), labels.clone()
    other_pixel[5, 0, 3, 3] ^= 1
    other_label[5] = 0
    variants = [
        (original, original),
        (MemoryImages(other_pixel, labels), original),
        (original, MemoryImages(other_pixel, labels)),
        (MemoryImages(pixels, other_label), original),
        (MemoryImages(pixels.view(6, 1, 2, 8), labels), original),
    ]
    prints = [image_data("x", train, test, ("a", "b")).fingerprint for train, test in variants]
    assert len(set(prints)) == len(prints)
    assert prints[0] == image_data("y", original, MemoryImages(pixels.clone(), labels), ("a", "b")).fingerprint


def test_lazy_fingerprint_changes_with_a_name_and_a_size(tmp_path: Path) -> None:
    def fingerprint() -> str:
        return load("imagefolder", folder=tmp_path, memory_limit=0).fingerprint

    path = write_images(tmp_path) / "test" / "dog" / "2.png"
    prints = [fingerprint()]
    assert fingerprint() == prints[0]
    path = path.rename(path.with_name("3.png"))
    prints.append(fingerprint())
    Image.fromarray(noise(50, 50, 3)).save(path)
    prints.append(fingerprint())
    assert len(set(prints)) == 3


# Validation split


@pytest.mark.parametrize("fraction", [0, 0.1, 0.25, 0.5, 0.9])
def test_split_is_a_sorted_stratified_partition(fraction: float) -> None:
    labels = torch.from_numpy(np.random.default_rng(1).choice(7, 501, p=[0.4, 0.2, 0.15, 0.1, 0.1, 0.04, 0.01]))
    train, validation = split_validation(labels, fraction, seed=3)
    assert len(validation) == round(fraction * 501)
    assert torch.equal(torch.cat([train, validation]).sort().values, torch.arange(501))
    assert torch.equal(train, train.sort().values) and torch.equal(validation, validation.sort().values)
    share = labels.bincount(minlength=7) * len(validation) / 501
    assert ((labels[validation].bincount(minlength=7) - share).abs() < 1).all()


def test_split_depends_on_the_seed_alone() -> None:
    labels = torch.arange(300) % 10
    first, again, other = (split_validation(labels, 0.2, seed)[1] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_small_classes_still_give_a_validation_part() -> None:
    labels = torch.arange(100).repeat(4)
    assert len(split_validation(labels, 0.1, 0)[1]) == 40


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_split_refuses_other_fractions(fraction: float) -> None:
    with pytest.raises(ConfigError, match="validation fraction: got"):
        split_validation(torch.zeros(10, dtype=torch.int64), fraction, 0)


# Preprocessing


def test_preprocessing_crops_scales_and_normalises() -> None:
    images = torch.from_numpy(noise(3, 2, 9, 8))
    result = Preprocessing(4, (0.5, 0.2), (0.5, 0.4))(images)
    expected = (images[:, :, 2:6, 2:6] / 255 - torch.tensor([0.5, 0.2])[:, None, None]) / torch.tensor([0.5, 0.4])[
        :, None, None
    ]
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected)


def test_preprocessing_leaves_its_input_alone() -> None:
    images = torch.from_numpy(noise(2, 3, 4, 4)).float()
    before = images.clone()
    Preprocessing(4, HALF, HALF)(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", DATASETS)
def test_bound_is_reached_and_not_passed(name: str) -> None:
    preprocessing = Preprocessing(1, DATASETS[name].mean, DATASETS[name].std)
    channels = len(preprocessing.mean)
    extremes = preprocessing(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, channels, 1, 1))
    assert extremes.abs().max().item() == pytest.approx(preprocessing.bound, rel=1e-6)


def test_preprocessing_survives_json() -> None:
    original = Preprocessing(32, (0.1, 0.2, 0.3), HALF)
    assert Preprocessing(**json.loads(json.dumps(asdict(original)))) == original


def test_preprocessing_refuses_images_that_do_not_fit() -> None:
    with pytest.raises(DataError, match=r"got 1 channels, .* has 3") as error:
        Preprocessing(8, HALF, HALF)(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    message(error)
    with pytest.raises(DataError, match=r"got 8 x 7 pixels, .* wants 8 x 8") as error:
        Preprocessing(8, HALF, HALF)(torch.zeros(1, 3, 8, 7, dtype=torch.uint8))
    message(error)


# Augmentations


def augment(name: str, images: torch.Tensor, size: int, seed: int = 0) -> torch.Tensor:
    return AUGMENTATIONS[name].apply(images, size, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("stored", "size"), [(16, 16), (20, 16), (8, 8)])
def test_augmentations_keep_shape_type_and_range(name: str, dtype: torch.dtype, stored: int, size: int) -> None:
    images = torch.from_numpy(noise(12, 3, stored, stored)).to(dtype)
    before = images.clone()
    result = augment(name, images, size)
    assert result.shape == (12, 3, size, size) and result.dtype == dtype
    assert result.min() >= 0 and result.max() <= 255
    assert torch.equal(images, before)
    assert torch.equal(result, augment(name, images, size))
    if name != "none":
        assert not torch.equal(result, augment(name, images, size, seed=1))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_change_each_image_on_its_own(name: str) -> None:
    same = torch.from_numpy(noise(1, 3, 16, 16)).expand(20, 3, 16, 16)
    variants = len({image.numpy().tobytes() for image in augment(name, same, 16)})
    assert variants == 1 if name == "none" else variants > 8


@pytest.mark.parametrize("name", ["shift", "crop-flip", "affine"])
def test_what_comes_in_from_outside_is_black(name: str) -> None:
    images = MemoryImages(torch.full((50, 1, 16, 16), 255, dtype=torch.uint8), torch.zeros(50, dtype=torch.int64))
    batches = Batches(images, torch.arange(50), Preprocessing(16, (0.5,), (0.5,)), 50, augmentation=name, seed=0)
    (batch,) = batches.epoch(0)
    assert batch.images.min() == -1 and batch.images.max() == 1
    assert (batch.images[:, :, 6:10, 6:10] == 1).all()


def test_resized_crop_never_looks_outside() -> None:
    assert (augment("resized-crop-flip", torch.full((64, 3, 20, 20), 255, dtype=torch.uint8), 16) == 255).all()


@pytest.mark.parametrize("name", ["shift", "crop-flip"])
def test_crops_are_windows_of_the_padded_image(name: str) -> None:
    images = torch.from_numpy(noise(200, 1, 16, 16))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    seen = set()
    for source, result in zip(padded, augment(name, images, 16), strict=True):
        matches = [
            (top, left, mirrored)
            for top in range(5)
            for left in range(5)
            for mirrored in (False, True)
            if torch.equal(result, source[:, top : top + 16, left : left + 16].flip(2 if mirrored else []))
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    tops, lefts, mirrors = (set(values) for values in zip(*seen, strict=True))
    assert tops == lefts == set(range(5))
    assert mirrors == ({False, True} if name == "crop-flip" else {False})


def test_a_square_is_cut_out_around_every_pixel() -> None:
    images = torch.from_numpy(noise(1, 3, 16, 16)).repeat(400, 1, 1, 1)
    result = cut_out(images, 16, torch.Generator().manual_seed(0))
    cut = (result == images.float().mean((2, 3), keepdim=True).to(torch.uint8)).all(1)
    assert torch.equal(result[~cut[:, None].expand(-1, 3, -1, -1)], images[~cut[:, None].expand(-1, 3, -1, -1)])
    heights, widths = cut.any(2).sum(1), cut.any(1).sum(1)
    assert torch.equal(cut.sum((1, 2)), heights * widths)  # rectangles
    assert heights.max() == widths.max() == 4 and heights.min() == widths.min() == 2
    assert cut.float().mean(0).min() > 0


def ramps(count: int, side: int) -> torch.Tensor:
    """Images whose first channel is the column and whose second is the row of each pixel's centre, in sides."""
    line = (torch.arange(side) + 0.5) / side
    return torch.stack([line.expand(side, side), line[:, None].expand(side, side)]).expand(count, 2, side, side)


def test_resized_crop_takes_the_rectangles_it_promises() -> None:
    result = augment("resized-crop-flip", ramps(500, 64), 32)
    width = (result[:, 0, 16, 20] - result[:, 0, 16, 12]) * 4
    height = (result[:, 1, 20, 16] - result[:, 1, 12, 16]) * 4
    area, ratio = width.abs() * height, width.abs() / height
    assert 0.079 < area.min() < 0.15 and 0.85 < area.max() < 1.001
    assert 0.745 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.34
    assert 200 < (width < 0).sum() < 300  # mirrored
    assert (height > 0).all()


def test_affine_stays_within_its_promises() -> None:
    side = 64
    result = augment("affine", ramps(500, side), side)
    middle = side // 2
    across = (result[:, :, middle, middle + 4] - result[:, :, middle, middle - 4]) * side / 8
    down = (result[:, :, middle + 4, middle] - result[:, :, middle - 4, middle]) * side / 8
    angle = torch.atan2(across[:, 1], across[:, 0])
    scale = 1 / across.norm(dim=1)
    determinant = across[:, 0] * down[:, 1] - across[:, 1] * down[:, 0]
    shear = (across * down).sum(dim=1) * scale**2
    centre = result[:, :, middle - 1 : middle + 1, middle - 1 : middle + 1].mean(dim=(2, 3)) - 0.5
    for values, limit in (
        (angle, math.radians(10)),
        (scale - 1, 0.1),
        (shear, 0.1),
        (centre[:, 0], 0.1),
        (centre[:, 1], 0.1),
    ):
        assert 0.9 * limit < values.abs().max() < 1.001 * limit
        assert values.min() < -0.9 * limit and values.max() > 0.9 * limit
    torch.testing.assert_close(determinant, scale**-2)


# Batches


IMAGES = MemoryImages(torch.from_numpy(noise(50, 3, 8, 8)), torch.arange(50) % 10)
POSITIONS = torch.arange(3, 50)
PREPROCESSING = Preprocessing(8, HALF, HALF)


def shuffled(seed: int = 1, augmentation: str = "crop-flip") -> Batches:
    return Batches(IMAGES, POSITIONS, PREPROCESSING, 8, augmentation=augmentation, seed=seed)


def test_batches_in_order() -> None:
    batches = Batches(IMAGES, POSITIONS, PREPROCESSING, 8)
    parts = list(batches.epoch(0))
    assert [len(part.images) for part in parts] == [8] * 5 + [7] and len(batches) == 6
    assert torch.equal(torch.cat([part.indices for part in parts]), POSITIONS)
    assert torch.equal(torch.cat([part.labels for part in parts]), IMAGES.labels[POSITIONS])
    assert torch.equal(torch.cat([part.images for part in parts]), PREPROCESSING(IMAGES.pixels[POSITIONS]))


def test_every_image_comes_once_with_its_label() -> None:
    parts = list(shuffled(augmentation="none").epoch(4))
    indices = torch.cat([part.indices for part in parts])
    assert not torch.equal(indices, POSITIONS)
    assert torch.equal(indices.sort().values, POSITIONS)
    assert torch.equal(torch.cat([part.labels for part in parts]), IMAGES.labels[indices])
    assert torch.equal(torch.cat([part.images for part in parts]), PREPROCESSING(IMAGES.pixels[indices]))


def test_a_later_start_leaves_batches_out_unread() -> None:
    read: list[int] = []

    class Counted(MemoryImages):
        def batch(self, positions: torch.Tensor) -> torch.Tensor:
            read.extend(positions.tolist())
            return super().batch(positions)

    whole = list(shuffled().epoch(2))
    counted = replace(shuffled(), images=Counted(IMAGES.pixels, IMAGES.labels))
    for start in range(len(whole) + 1):
        read.clear()
        rest = list(counted.epoch(2, start))
        assert len(rest) == len(whole) - start
        for one, other in zip(rest, whole[start:], strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.indices, other.indices) and torch.equal(one.labels, other.labels)
        assert read == [index for part in rest for index in part.indices.tolist()]


def test_images_are_held_on_a_device_where_they_fit() -> None:
    device, size = torch.device("cpu"), IMAGES.pixels.numel()
    held = held_on(IMAGES, device, size)
    assert held is not IMAGES and torch.equal(held.batch(POSITIONS), IMAGES.batch(POSITIONS))
    assert held_on(IMAGES, device, size - 1) is IMAGES
    files = FileImages(Path(), ["a.png"], torch.zeros(1, dtype=torch.int64), 8)
    assert held_on(files, device, size) is files


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_images_stay_on_their_device(name: str) -> None:
    """On a GPU that is only made believe, where an index or a mask of the CPU's among its tensors is an error."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        pixels = torch.empty(9, 2, 12, 12, dtype=torch.uint8, device="cuda")
        raw = MemoryImages(pixels, torch.zeros(9)).batch(torch.arange(4))
        changed = AUGMENTATIONS[name].apply(raw, 8, torch.Generator())
        images = Preprocessing(8, HALF[:2], HALF[:2])(changed)
    assert {part.device for part in (raw, changed, images)} == {torch.device("cuda:0")}
    assert images.shape == (4, 2, 8, 8)


def test_an_empty_selection_has_no_batches() -> None:
    batches = Batches(IMAGES, POSITIONS[:0], PREPROCESSING, 8)
    assert len(batches) == 0 and list(batches.epoch(0)) == []


def test_an_epoch_depends_on_its_seed_and_number_alone() -> None:
    interrupted = shuffled()
    list(interrupted.epoch(0))
    torch.rand(3)  # the global generator plays no part
    for one, other in zip(interrupted.epoch(1), shuffled().epoch(1), strict=True):
        assert torch.equal(one.indices, other.indices) and torch.equal(one.images, other.images)


@pytest.mark.parametrize(("seed", "epoch"), [(1, 1), (2, 0)])
def test_other_epochs_and_seeds_differ_in_order_and_augmentation(seed: int, epoch: int) -> None:
    def by_index(batches: Batches, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        parts = list(batches.epoch(number))
        order = torch.cat([part.indices for part in parts])
        return order, torch.cat([part.images for part in parts])[order.argsort()]

    first_order, first_images = by_index(shuffled(1), 0)
    order, images = by_index(shuffled(seed), epoch)
    assert not torch.equal(first_order, order)
    assert (first_images != images).flatten(1).any(dim=1).float().mean() > 0.8


def test_batches_of_one_epoch_are_augmented_differently() -> None:
    same = MemoryImages(IMAGES.pixels[:1].expand(16, 3, 8, 8), torch.zeros(16, dtype=torch.int64))
    first, second = Batches(same, torch.arange(16), PREPROCESSING, 8, augmentation="affine", seed=0).epoch(0)
    assert not torch.equal(first.images, second.images)


def test_augmentation_must_be_known_and_needs_a_seed() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'crop-flip'"):
        shuffled(augmentation="crop-flop")
    with pytest.raises(ConfigError, match="'shift' without a seed") as error:
        Batches(IMAGES, POSITIONS, PREPROCESSING, 8, augmentation="shift")
    message(error)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("hybridsnn-batches")]


@pytest.mark.parametrize("ending", ["close", "forget", "exhaust", "never start"])
def test_no_thread_outlives_its_iterator(ending: str) -> None:
    iterator = shuffled().epoch(0)
    if ending == "exhaust":
        list(iterator)
    elif ending != "never start":
        assert len(list(islice(iterator, 2))) == 2
        assert workers()
    if ending == "close":
        iterator.close()
    del iterator
    assert not workers()


def test_a_failure_in_the_background_reaches_the_caller() -> None:
    iterator = Batches(IMAGES, torch.tensor([0, 1, 2, 3, 999]), PREPROCESSING, 2).epoch(0)
    assert next(iterator).indices.tolist() == [0, 1]
    assert next(iterator).indices.tolist() == [2, 3]
    with pytest.raises(IndexError):
        next(iterator)
    assert not workers()
