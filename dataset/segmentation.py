"""The data sets: records, read and transformed to uint8 samples."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .catalogue import CITYSCAPES, ClassSet, check_known, data_set, label_table
from .errors import MissingDataError
from .layouts import Record, find_records
from .reading import ReadError, read_image, read_label
from .transforms import Transform

# Official GTA5 has a few labels that differ from their image by a few pixels; more than this is another picture.
SIZE_TOLERANCE = 16


def build_dataset(
    name: str,
    root: str,
    split: str,
    list_file: str | None = None,
    classes: ClassSet = CITYSCAPES,
    transform: Transform | None = None,
    labels: bool = True,
    part: str | None = None,
) -> "SegmentationDataset":
    """The images of a data set of `dataset.catalogue.DATA_SETS`; see `dataset.layouts.find_records` for the arguments.

    Args:
        classes: labels are train ids of these; every one must be a class of the data set.
        transform: see `dataset.transforms`.
        labels: False: label files are neither needed nor opened, and neither is the classes.json of a plain folder.

    Raises:
        MissingDataError, DataError: as `find_records`, or labels are asked for where there are none, or a class is none of
            the data set's.
    """
    records = find_records(name, root, split, list_file, part)
    if labels and any(record.label is None for record in records):
        raise MissingDataError(f"{root}: split {split} of {name} has no labels (docs/data.md shows where they are looked for)")
    return dataset_of(records, name, root, classes, transform, labels)


def dataset_of(
    records: Sequence[Record],
    name: str,
    root: str,
    classes: ClassSet = CITYSCAPES,
    transform: Transform | None = None,
    labels: bool = True,
) -> "SegmentationDataset":
    """What `find_records` found of a data set; the arguments are those of `build_dataset`.

    Raises:
        MissingDataError, DataError: there is no classes.json, or a class is none of the data set's.
    """
    if not labels:
        return SegmentationDataset(records, None, transform, labels=False)
    known = data_set(name, root)
    if not known.ids:
        raise MissingDataError(f"{root}/classes.json: no such file; it names the classes of the labels (docs/data.md)")
    check_known(classes, known.ids, f"{known.title} {root}")
    return SegmentationDataset(records, label_table(known.ids, classes), transform, True, known.label_reader(root))


class SegmentationDataset(Dataset):
    """Samples as dicts: `image` (3,H,W) uint8 RGB, `label` (H,W) uint8 ids with 255 for ignored, `name`, `path`.

    An item is asked for by its index, or by (index, seed, batch_seed): the seeds of the draws that are its own and of those
    that its whole batch shares.

    Args:
        table: uint8[256] from raw ids to train ids; None if no labels are read.
        read_label: from the path of a label to its raw ids, (H,W) uint8.

    Raises (from an item):
        MissingDataError, ReadError: naming the file.
    """

    def __init__(
        self,
        records: Sequence[Record],
        table: np.ndarray | None,
        transform: Transform | None = None,
        labels: bool = True,
        read_label: Callable[[str], np.ndarray] = read_label,
    ) -> None:
        self.records, self.transform, self.labels, self.read_label = records, transform, labels, read_label
        self._table = table

    @property
    def table(self) -> np.ndarray:
        """uint8[256] from raw ids to train ids.

        Raises:
            ValueError: the data set was built without one, to be read without labels.
        """
        if self._table is None:
            raise ValueError("this data set was built to be read without labels: it has no table of their ids")
        return self._table

    def __len__(self) -> int:
        return len(self.records)

    def path(self, index: int) -> str:
        """The file of an image."""
        return self.records[index].image

    def __getitem__(self, key: int | tuple[int, int, int]) -> dict[str, Any]:
        index, seed, batch_seed = key if isinstance(key, tuple) else (key, key, key)
        record = self.records[index]
        image = read_image(record.image)
        label = self._read_label(record, image) if self.labels else None
        if self.transform is not None:
            image, label = self.transform(image, label, random.Random(seed), random.Random(batch_seed))
        sample = {"image": image.contiguous(), "name": record.name, "path": record.image}
        if label is not None:
            sample["label"] = torch.from_numpy(self.table.take(label.numpy()))
        return sample

    def _read_label(self, record: Record, image: torch.Tensor) -> torch.Tensor:
        if record.label is None:
            raise MissingDataError(f"{record.image}: has no label")
        label = self.read_label(record.label)
        difference = max(abs(a - b) for a, b in zip(label.shape, image.shape[1:], strict=True))
        if difference > SIZE_TOLERANCE:
            sizes = f"{label.shape[1]}x{label.shape[0]} against {image.shape[2]}x{image.shape[1]}"
            raise ReadError(f"{record.label}: its size does not fit {record.image} ({sizes})")
        return torch.from_numpy(label)
