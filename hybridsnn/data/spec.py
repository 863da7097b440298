"""Which data set a network is made for, and how its images reach it."""

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from hybridsnn.config import Choice, StageConfig
from hybridsnn.data.augmentation import AUGMENTATIONS
from hybridsnn.data.datasets import DATASETS, DEFAULT_BINNING
from hybridsnn.data.events import BINNINGS
from hybridsnn.data.images import ImageData

FOLDERS = ("imagefolder", "imagenet")  # data sets that are whatever folder they are given


class DataSpec(StageConfig):
    """Which data set, and how its images reach a network.

    The first stage takes these as settings; `resolved` fills in what is unset, and `model.json` keeps the result, from
    which later stages open the same images again.
    """

    dataset: Annotated[str, Choice(DATASETS, "dataset")] = Field("digits", description="Data set.")
    folder: str | None = Field(
        None, description=f"Folder of images inside --data, for {' and '.join(FOLDERS)}; unset: --data itself."
    )
    images: int | None = Field(
        None,
        gt=0,
        description="Number of training images to use, validation included, stratified by class; unset: all.",
    )
    image_size: int | None = Field(
        None, gt=0, description="Height and width of the images in pixels; unset: the data set's own."
    )
    validation: float = Field(
        0.1, ge=0, lt=1, description="Share of the training images held out to choose the best epoch; 0: none."
    )
    augmentation: Annotated[str, Choice(AUGMENTATIONS, "augmentation")] | None = Field(
        None, description="Augmentation of the training images; unset: the data set's own."
    )
    event_frames: int | None = Field(
        None, gt=0, description="Number of frames that each recording of events is binned into; unset: the data set's."
    )
    event_binning: Annotated[str, Choice(BINNINGS, "binning")] | None = Field(
        None, description="Bin events into frames of equal time or of equal counts; unset: time."
    )
    seed: int = Field(0, ge=0, description="Random seed.")

    @field_validator("folder")
    @classmethod
    def _only_of_folders(cls, folder: str | None, info: ValidationInfo) -> str | None:
        dataset = info.data.get("dataset")  # missing if it is itself refused
        if folder is not None and dataset is not None and dataset not in FOLDERS:
            raise ValueError(f"must be left unset for '{dataset}', which has its own place in --data")
        return folder

    def resolved(self, data: ImageData) -> "DataSpec":
        """This description of `data` alone, with the data set's own values in the place of those that are unset."""
        entry = DATASETS[self.dataset]
        events = entry.frames is not None
        own = {
            "image_size": entry.preprocessing(data).size,
            "augmentation": self.augmentation or entry.augmentation,
            "event_frames": self.event_frames or entry.frames,
            "event_binning": self.event_binning or (DEFAULT_BINNING if events else None),
        }
        return DataSpec(**{name: getattr(self, name) for name in DataSpec.model_fields} | own)
