"""Data sets on disk to endless batches of uint8 samples. Start with `build_dataset` and `EndlessLoader`."""

from .classes import CLASS_NAMES, PALETTE, class_names, label_table
from .loader import EndlessLoader, sequential_loader
from .reading import ReadError
from .segmentation import SegmentationDataset, build_dataset

__all__ = [
    "CLASS_NAMES",
    "PALETTE",
    "EndlessLoader",
    "ReadError",
    "SegmentationDataset",
    "build_dataset",
    "class_names",
    "label_table",
    "sequential_loader",
]
