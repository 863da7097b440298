"""Images in class folders: `train/<class>/*` and `test/<class>/*` or `val/<class>/*`."""

import os
from pathlib import Path

import torch

from hybridsnn.data.images import FileImages, ImageData, Images, MemoryImages, decode, image_data, shorter_side
from hybridsnn.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
LAYOUT = "expected train/<class>/* and test/<class>/* or val/<class>/*"


def load_folder(name: str, folder: Path, size: int | None, memory_limit: int | None) -> ImageData:
    """The images under `folder`, as RGB squares.

    They are decoded at once where they fit into the memory limit, else batch by batch. Of `test` and `val` the first
    that has class folders is the test set; the validation set is always taken from `train`.

    Args:
        name: of the data set, for messages.
        folder: the one that holds `train`.
        size: height and width, pixels; None: the shorter side of the first training image.
        memory_limit: bytes that the decoded images may take; None: a quarter of the machine's memory.

    Raises:
        DataError: if folders are missing or empty, their classes differ, or an image is damaged.
    """
    remedy = "Give the folder that holds them: --data FOLDER"
    if not folder.is_dir():
        raise DataError(f"{name}: no such folder: {folder}; {LAYOUT}. {remedy}")
    train_classes = _class_names(folder / "train")
    test_split = "test" if _class_names(folder / "test") else "val"
    test_classes = _class_names(folder / test_split)
    for split, found in (("train", train_classes), ("test or val", test_classes)):
        if not found:
            raise DataError(f"{name}: {folder} has no class folders in {split}; {LAYOUT}. {remedy}")
    if train_classes != test_classes:
        odd = min(set(train_classes) ^ set(test_classes))
        there, lacking = ("train", test_split) if odd in train_classes else (test_split, "train")
        raise DataError(
            f"{name}: {folder}: class '{odd}' is in {there} but not in {lacking}; both must have the same classes. "
            f"Add {lacking}/{odd} or remove {there}/{odd}"
        )

    listings = {
        split: [_image_files(name, folder, split, entry) for entry in train_classes] for split in ("train", test_split)
    }
    side = size or shorter_side(folder / listings["train"][0][0])
    count = sum(len(files) for listing in listings.values() for files in listing)
    limit = _physical_memory() // 4 if memory_limit is None else memory_limit
    in_memory = count * 3 * side * side <= limit

    def images(listing: list[list[str]]) -> Images:
        files = [file for of_class in listing for file in of_class]
        labels = torch.repeat_interleave(torch.tensor([len(of_class) for of_class in listing]))
        return (
            MemoryImages(decode(folder, files, side), labels) if in_memory else FileImages(folder, files, labels, side)
        )

    return image_data(name, images(listings["train"]), images(listings[test_split]), train_classes)


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _image_files(name: str, root: Path, split: str, class_name: str) -> list[str]:
    """Sorted paths, relative to `root`, of the images anywhere below a class folder."""
    files = sorted(
        f"{prefix}/{file}"
        for folder, _, files in os.walk(root / split / class_name)
        for prefix in (Path(folder).relative_to(root).as_posix(),)
        for file in files
        if file.lower().endswith(SUFFIXES) and not file.startswith(".")
    )
    if not files:
        raise DataError(
            f"{name}: {root / split / class_name} holds no images; expected {', '.join(SUFFIXES)}. "
            "Fill it, or remove it from train and test"
        )
    return files


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
