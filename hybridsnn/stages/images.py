"""Images for stages: loaded once, always split in the same way, checked against those a network was made with."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybridsnn.artifacts import Artifact, lineage
from hybridsnn.config import StageConfig, hash_of
from hybridsnn.data import (
    DATASETS,
    FOLDERS,
    Batches,
    DataSpec,
    ImageData,
    Images,
    Preprocessing,
    default_folder,
    held_on,
    load,
    split_validation,
    stratified,
)
from hybridsnn.errors import ArtifactError, ConfigError, DataError
from hybridsnn.networks import NetworkSpec
from hybridsnn.stages.base import Environment, Work
from hybridsnn.stages.networks import ModelDescription

MEASURED = 0  # seed of the choice of images to measure on: the same for all networks
CPU = torch.device("cpu")


def outside_of_images(config: StageConfig, environment: Environment) -> Mapping[str, str]:
    """What identifies the images beside the settings: the folder's name, where the folder is the data set."""
    named = isinstance(config, DataSpec) and (config.dataset not in FOLDERS or config.folder is not None)
    if isinstance(config, DataSpec) and not named and environment.data is not None:
        return {"folder": hash_of(environment.data.expanduser().resolve().name)}
    return {}


@dataclass(frozen=True)
class LoadedImages:
    """A loaded data set, its description and its preprocessing.

    Attributes:
        spec: resolved, so that it opens the same images again.
        device: where batches are augmented and normalised.
    """

    data: ImageData
    spec: DataSpec
    preprocessing: Preprocessing
    device: torch.device = CPU

    def on(self, device: torch.device) -> "LoadedImages":
        """The same for a network on a device: on a GPU, batches are made there, and images that take at most a quarter
        of the free memory are moved there once.
        """
        return replace(self, device=device) if device.type == "cuda" else self

    def network(
        self,
        name: str,
        *,
        batch_norm: bool,
        width: float,
        dropout: float | None = None,
        levels: int | None = None,
        ceilings_per: str = "layer",
    ) -> NetworkSpec:
        """A network for these images and their classes."""
        shape = (self.data.train.shape[0], self.preprocessing.size, self.preprocessing.size)
        return NetworkSpec(name, shape, len(self.data.classes), batch_norm, width, dropout, levels, ceilings_per)

    def description(self, network: NetworkSpec) -> ModelDescription:
        """The content of `model.json` for an ANN on these images."""
        return ModelDescription(
            network=network, data=self.spec, preprocessing=self.preprocessing, classes=list(self.data.classes)
        )

    def training(
        self, batch_size: int, seed: int, augmentation: str | None = None, count: int | None = None
    ) -> Batches:
        """Shuffled, augmented training batches; of `count` images, the same for each seed, or of all.

        Raises:
            ConfigError: if there are not as many.
        """
        train, _ = self._split()
        if count is not None:
            train = train[_some(self._train.labels[train], count, self.spec.seed, "the training split")]
        return Batches(
            self._train,
            train,
            self.preprocessing,
            batch_size,
            augmentation=augmentation or str(self.spec.augmentation),
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
        return Batches(images, positions, self.preprocessing, batch_size, device=self.device)

    def calibration(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Normalised images `[N, C, H, W]` or events `[N, T, C, H, W]` and their indices `[N]`.

        They are drawn from the training split, without augmentation; `count` of them, or all there are.

        Raises:
            DataError: if there are no training images.
        """
        source = self.measuring("train", 1)
        generator = torch.Generator().manual_seed(seed)
        chosen = source.positions[torch.randperm(len(source.positions), generator=generator)[:count]].sort().values
        if len(chosen) == 0:
            raise DataError(f"dataset: '{self.data.name}' has no training images to calibrate on")
        return source.preprocessing(source.images.batch(chosen)), chosen

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
        labels, spec = self.data.train.labels, self.spec
        used = torch.arange(len(labels))
        if spec.images is not None:
            used = _some(labels, spec.images, spec.seed, f"'{self.data.name}'")
        training, validation = split_validation(labels[used], spec.validation, spec.seed)
        return used[training], used[validation]


def _some(labels: Tensor, count: int, seed: int, where: str) -> Tensor:
    if count > len(labels):
        raise ConfigError(f"images: got {count}, but {where} has {len(labels)}; give at most as many")
    return stratified(labels, count, seed)


def open_new(spec: DataSpec, work: Work) -> LoadedImages:
    """Load the data set that a first stage names, and record it for the manifest.

    Raises:
        ConfigError: if the validation share leaves no image to train on, or none to validate with, or images are to
            be binned like events.
        DataError: if the data set is missing or has another number of channels than its normalisation.
    """
    data = _load(spec, work)
    total = min(len(data.train), spec.images or len(data.train))
    held_out = round(spec.validation * total)
    if held_out == total or (spec.validation and not held_out):
        raise ConfigError(
            f"validation: got {spec.validation}, which holds out {held_out} of {total} training images; "
            "must leave some on either side, or be 0"
        )
    preprocessing = DATASETS[spec.dataset].preprocessing(data)
    channels = data.train.shape[0]
    if channels != len(preprocessing.mean):
        raise DataError(f"dataset: '{data.name}' has {channels} channels, its normalisation {len(preprocessing.mean)}")
    resolved = spec.resolved(data)
    work.environment.opened[_stored(resolved)] = data
    return LoadedImages(data, resolved, preprocessing)


def open_again(description: ModelDescription, work: Work) -> LoadedImages:
    """Load the data set that a network was made with.

    Raises:
        ArtifactError: if its content is no longer the same.
    """
    data = _load(description.data, work)
    for artifact in _ancestors(work):
        mark = artifact.manifest.data
        if mark is not None and mark.fingerprint != data.fingerprint:
            place = f" in {work.environment.data}" if work.environment.data else ""
            raise ArtifactError(
                f"data: {artifact.path} was made with {mark.name} ({mark.fingerprint[:12]}); {data.name}{place} "
                f"now is {data.fingerprint[:12]}; give the same folder with --data"
            )
    return LoadedImages(data, description.data, description.preprocessing)


def _stored(spec: DataSpec) -> tuple[Any, ...]:
    """The part of a description on which the stored images depend."""
    return spec.dataset, spec.folder, spec.image_size, spec.event_frames, spec.event_binning


def _load(spec: DataSpec, work: Work) -> ImageData:
    environment, stored = work.environment, _stored(spec)
    if stored not in environment.opened:
        environment.opened.clear()  # one data set at a time stays in memory
        folder: Path | None = environment.data
        if spec.folder is not None:
            folder = (folder or default_folder()) / spec.folder
        environment.opened[stored] = load(
            spec.dataset,
            folder=folder,
            download=environment.download,
            size=spec.image_size,
            event_frames=spec.event_frames,
            event_binning=spec.event_binning,
            say=environment.progress.say,
        )
    data: ImageData = environment.opened[stored]
    work.data = (data.name, data.fingerprint)
    return data


def _ancestors(work: Work) -> list[Artifact]:
    return [artifact for parent in work.parents for artifact in lineage(parent)]
