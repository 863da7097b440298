"""Pictures for stages: opened once, split the same way every time, checked against those a network was made with."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from hybridsnn.artifacts import Artifact, lineage
from hybridsnn.config import Choice, StageConfig, hash_of
from hybridsnn.data import (
    AUGMENTATIONS,
    BINNINGS,
    DATASETS,
    DEFAULT_BINNING,
    Batches,
    ImageData,
    Images,
    default_folder,
    held_on,
    load,
    split_validation,
    stratified,
)
from hybridsnn.errors import ArtifactError, ConfigError, DataError
from hybridsnn.networks import NetworkSpec
from hybridsnn.stages.base import Environment, Work
from hybridsnn.stages.networks import EventDescription, ImageDescription

FOLDERS = ("imagefolder", "imagenet")  # data sets that are whatever folder they are given
MEASURED = 0  # seed of the choice of images to measure on: the same for all networks
CPU = torch.device("cpu")


class ImageSettings(StageConfig):
    """Which pictures a network is made for; later stages take them over from its artifact."""

    dataset: Annotated[str, Choice(DATASETS, "dataset")] = Field("digits", description="Data set.")
    folder: str | None = Field(
        None, description=f"Folder of pictures inside --data, for {' and '.join(FOLDERS)}; unset: --data itself."
    )
    images: int | None = Field(
        None, gt=0, description="Training images to use, of each class its share, validation included; unset: all."
    )
    image_size: int | None = Field(None, gt=0, description="Side of the pictures in pixels; unset: the data set's own.")
    validation: float = Field(
        0.1, ge=0, lt=1, description="Share of the training images kept back to choose the best epoch; 0: none."
    )
    augmentation: Annotated[str, Choice(AUGMENTATIONS, "augmentation")] | None = Field(
        None, description="Random changes to training images; unset: the data set's own."
    )
    event_frames: int | None = Field(
        None, gt=0, description="Frames that recordings of events are binned to; unset: the data set's own."
    )
    event_binning: Annotated[str, Choice(BINNINGS, "binning")] | None = Field(
        None, description="Frames of equal time, or of equal counts of events; unset: time."
    )
    seed: int = Field(0, ge=0, description="Seed of everything random.")

    @field_validator("folder")
    @classmethod
    def _only_of_pictures(cls, folder: str | None, info: ValidationInfo) -> str | None:
        dataset = info.data.get("dataset")  # missing if it is itself refused
        if folder is not None and dataset is not None and dataset not in FOLDERS:
            raise ValueError(f"must be left unset for '{dataset}', which has its own place in --data")
        return folder


def outside(config: StageConfig, environment: Environment) -> Mapping[str, str]:
    """What identifies the pictures beside the settings: the folder's name, where the folder is the data set."""
    named = isinstance(config, ImageSettings) and (config.dataset not in FOLDERS or config.folder is not None)
    if isinstance(config, ImageSettings) and not named and environment.data is not None:
        return {"folder": hash_of(environment.data.expanduser().resolve().name)}
    return {}


@dataclass(frozen=True)
class Pictures:
    """An opened data set, described so that it can be opened the same way again.

    Attributes:
        device: where batches are augmented and normalised.
    """

    data: ImageData
    description: ImageDescription
    device: torch.device = CPU

    def on(self, device: torch.device) -> "Pictures":
        """The same for a network on a device: on a GPU, so are its batches, and pictures that take a quarter of the
        free memory at most are moved there once.
        """
        return replace(self, device=device) if device.type == "cuda" else self

    def network(self, name: str, *, batch_norm: bool, width: float, dropout: float | None = None) -> NetworkSpec:
        """A network for these pictures and their classes."""
        size = self.description.image_size
        shape = (self.data.train.shape[0], size, size)
        return NetworkSpec(name, shape, len(self.data.classes), batch_norm, width, dropout)

    def training(self, batch_size: int, seed: int, augmentation: str | None = None) -> Batches:
        """Shuffled, augmented training batches."""
        train, _ = self._split()
        return Batches(
            self._train,
            train,
            self.description.preprocessing(),
            batch_size,
            augmentation=augmentation or self.description.augmentation,
            seed=seed,
            device=self.device,
        )

    def measuring(self, split: str, batch_size: int, count: int | None = None) -> Batches:
        """The images of `train`, `validation` or `test` in order, without augmentation; `count` of them, or all.

        Raises:
            ConfigError: if there are not as many.
        """
        train, validation = self._split()
        images = self._test if split == "test" else self._train
        positions = {"train": train, "validation": validation, "test": torch.arange(len(self.data.test))}[split]
        if count is not None:
            positions = positions[_some(images.labels[positions], count, MEASURED, f"the {split} split")]
        return Batches(images, positions, self.description.preprocessing(), batch_size, device=self.device)

    @cached_property
    def _train(self) -> Images:
        return self._held(self.data.train)

    @cached_property
    def _test(self) -> Images:
        return self._held(self.data.test)

    def _held(self, images: Images) -> Images:
        if self.device == CPU:
            return images
        free, _ = torch.cuda.mem_get_info(self.device)
        return held_on(images, self.device, free // 4)

    def _split(self) -> tuple[Tensor, Tensor]:
        labels, description = self.data.train.labels, self.description
        used = torch.arange(len(labels))
        if description.count is not None:
            used = _some(labels, description.count, description.split_seed, f"'{self.data.name}'")
        training, validation = split_validation(labels[used], description.validation, description.split_seed)
        return used[training], used[validation]


def _some(labels: Tensor, count: int, seed: int, where: str) -> Tensor:
    if count > len(labels):
        raise ConfigError(f"images: got {count}, but {where} has {len(labels)}; give at most as many")
    return stratified(labels, count, seed)


def open_new(settings: ImageSettings, work: Work) -> Pictures:
    """Open the data set that a first stage names, and note it for the manifest.

    Raises:
        ConfigError: if the validation share leaves no image to train on, or none to validate with, or pictures are to
            be binned like events.
        DataError: if the data set is missing or has another number of channels than its normalisation.
    """
    entry = DATASETS[settings.dataset]
    asked = _Asked(
        settings.dataset, settings.folder, settings.image_size, settings.event_frames, settings.event_binning
    )
    data = _load(asked, work)
    total = min(len(data.train), settings.images or len(data.train))
    kept_back = round(settings.validation * total)
    if kept_back == total or (settings.validation and not kept_back):
        raise ConfigError(
            f"validation: got {settings.validation}, which keeps back {kept_back} of {total} training images; "
            "must leave some on either side, or be 0"
        )
    preprocessing = entry.preprocessing(data)
    channels = data.train.shape[0]
    if channels != len(preprocessing.mean):
        raise DataError(f"dataset: '{data.name}' has {channels} channels, its normalisation {len(preprocessing.mean)}")
    events = None
    if entry.frames is not None:
        events = EventDescription(
            frames=settings.event_frames or entry.frames, binning=settings.event_binning or DEFAULT_BINNING
        )
    description = ImageDescription(
        dataset=settings.dataset,
        image_size=preprocessing.size,
        mean=list(preprocessing.mean),
        std=list(preprocessing.std),
        classes=list(data.classes),
        validation=settings.validation,
        split_seed=settings.seed,
        augmentation=settings.augmentation or entry.augmentation,
        events=events,
        folder=settings.folder,
        count=settings.images,
    )
    work.environment.opened[_Asked.again(description)] = data
    return Pictures(data, description)


def open_again(description: ImageDescription, work: Work) -> Pictures:
    """Open the data set that a network was made with.

    Raises:
        ArtifactError: if its content is no longer the same.
    """
    data = _load(_Asked.again(description), work)
    for artifact in _ancestors(work):
        mark = artifact.manifest.data
        if mark is not None and mark.fingerprint != data.fingerprint:
            place = f" in {work.environment.data}" if work.environment.data else ""
            raise ArtifactError(
                f"data: {artifact.path} was made with {mark.name} ({mark.fingerprint[:12]}); {data.name}{place} "
                f"now is {data.fingerprint[:12]}; give the same folder with --data"
            )
    return Pictures(data, description)


class _Asked(NamedTuple):
    """Which data set, in which folder inside that of the environment, and how its pictures are stored."""

    dataset: str
    folder: str | None
    size: int | None
    frames: int | None
    binning: str | None

    @classmethod
    def again(cls, description: ImageDescription) -> "_Asked":
        events = description.events
        frames, binning = (events.frames, events.binning) if events else (None, None)
        return cls(description.dataset, description.folder, description.image_size, frames, binning)


def _load(asked: _Asked, work: Work) -> ImageData:
    environment = work.environment
    if asked not in environment.opened:
        environment.opened.clear()  # one data set at a time stays in memory
        folder: Path | None = environment.data
        if asked.folder is not None:
            folder = (folder or default_folder()) / asked.folder
        environment.opened[asked] = load(
            asked.dataset,
            folder=folder,
            download=environment.download,
            size=asked.size,
            event_frames=asked.frames,
            event_binning=asked.binning,
            say=environment.progress.say,
        )
    data: ImageData = environment.opened[asked]
    work.data = (data.name, data.fingerprint)
    return data


def _ancestors(work: Work) -> list[Artifact]:
    return [artifact for parent in work.parents for artifact in lineage(parent)]
