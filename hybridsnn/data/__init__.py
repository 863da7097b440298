"""Image and event sets: load, split, augment, preprocess, batch."""

from hybridsnn.data.augmentation import AUGMENTATIONS, Augmentation
from hybridsnn.data.batches import Batches
from hybridsnn.data.datasets import DATASETS, DEFAULT_BINNING, DataSet, Request, default_folder, load
from hybridsnn.data.events import BINNINGS, Binning, EventImages, Events
from hybridsnn.data.images import FileImages, ImageData, Images, MemoryImages, held_on, image_data
from hybridsnn.data.preprocessing import Preprocessing
from hybridsnn.data.split import split_validation, stratified

__all__ = [
    "AUGMENTATIONS",
    "BINNINGS",
    "DATASETS",
    "DEFAULT_BINNING",
    "Augmentation",
    "Batches",
    "Binning",
    "DataSet",
    "EventImages",
    "Events",
    "FileImages",
    "ImageData",
    "Images",
    "MemoryImages",
    "Preprocessing",
    "Request",
    "default_folder",
    "held_on",
    "image_data",
    "load",
    "split_validation",
    "stratified",
]
