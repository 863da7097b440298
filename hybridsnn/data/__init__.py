"""Data sets of images and of events: load, split, augment, preprocess, batch."""

from hybridsnn.data.augmentation import AUGMENTATIONS, Augmentation
from hybridsnn.data.batches import Batches
from hybridsnn.data.datasets import DATASETS, DataSet, default_folder, load
from hybridsnn.data.defaults import TrainingDefaults
from hybridsnn.data.events import BINNINGS, Binning, EventImages, Events
from hybridsnn.data.images import FileImages, ImageData, Images, MemoryImages, held_on, image_data
from hybridsnn.data.preprocessing import Preprocessing
from hybridsnn.data.spec import FOLDERS, DataSpec
from hybridsnn.data.split import split_validation, stratified

__all__ = [
    "AUGMENTATIONS",
    "BINNINGS",
    "DATASETS",
    "FOLDERS",
    "Augmentation",
    "Batches",
    "Binning",
    "DataSet",
    "DataSpec",
    "EventImages",
    "Events",
    "FileImages",
    "ImageData",
    "Images",
    "MemoryImages",
    "Preprocessing",
    "TrainingDefaults",
    "default_folder",
    "held_on",
    "image_data",
    "load",
    "split_validation",
    "stratified",
]
