"""Folders of pseudo-labels: palette PNGs of train ids, one per image and named like it, and what they were made from."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import Subset
from tqdm import tqdm

from dataset.lists import Record
from dataset.segmentation import SegmentationDataset

from .. import distributed
from ..pictures import save_colours
from ..state import StateError, claim_directory

T = TypeVar("T")


class LabelFolder:
    """Pseudo-labels in `directory`, for networks of `num_classes` classes."""

    def __init__(self, directory: str, num_classes: int):
        self.directory, self.num_classes = directory, num_classes

    def claim(self, resume: bool, **made_from: Any) -> None:
        """Note what the labels are made from, so that two sets never mix.

        Raises:
            StateError: there are labels made from something else already, or from the same without `resume`.
        """
        claim_directory(self.directory, {**made_from, "num_classes": self.num_classes}, resume)

    def path(self, name: str) -> str:
        """The label of the image that is filed under `name` (with its sub-folders): the same name, always as a PNG."""
        return os.path.join(self.directory, f"{os.path.splitext(name)[0]}.png")

    def has(self, record: Record) -> bool:
        return os.path.exists(self.path(record.name))

    def write(self, name: str, ids: np.ndarray) -> None:
        """Write the label (H,W) uint8 of the image that is filed under `name`: train ids, 255 for ignored."""
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        save_colours(self.path(name), ids, self.num_classes)

    def check_names(self, records: Sequence[Record]) -> None:
        """See that each image gets a label of its own.

        Raises:
            ValueError: two images would share one.
        """
        first: dict[str, Record] = {}
        for record in records:
            other = first.setdefault(self.path(record.name), record)
            if other is not record:
                raise ValueError(
                    f"{record.image} and {other.image} have the same name, so their pseudo-labels would overwrite each other"
                )

    def labelled(self, records: Sequence[Record], way_out: str) -> list[Record]:
        """The records with their pseudo-labels as labels.

        Args:
            way_out: what makes missing labels, for the message.

        Raises:
            FileNotFoundError: a label is missing.
            StateError: the labels are of another number of classes.
        """
        found = self._noted_classes()
        if found != self.num_classes:
            raise StateError(f"{self.directory}: pseudo-labels of {found} classes, not {self.num_classes}")
        missing = [self.path(record.name) for record in records if not self.has(record)]
        if missing:
            raise FileNotFoundError(f"{missing[0]}: no such pseudo-label ({len(missing)} missing); {way_out}")
        return [Record(record.image, self.path(record.name), record.name) for record in records]

    def _noted_classes(self) -> int:
        """The number of classes in the note, or one's own where there is none: labels from elsewhere have no note."""
        path = os.path.join(self.directory, "made_from.json")
        if not os.path.exists(path):
            return self.num_classes
        with open(path) as file:
            return json.load(file).get("num_classes", self.num_classes)


def left_over(dataset: SegmentationDataset, done: Callable[[Record], bool]) -> Subset:
    """The images of a data set for which `done(record)` is false.

    All processes decide before one of them goes on, so that they share out the same list.
    """
    positions = [i for i, record in enumerate(dataset.records) if not done(record)]
    distributed.wait_for_all()
    return Subset(dataset, positions)


def progress(items: Iterable[T], title: str, total: int | None = None) -> Iterable[T]:
    """`items` with a progress bar in the main process."""
    return tqdm(items, desc=title, total=total, unit="image", disable=not distributed.is_main())
