"""Folders of pseudo-labels: palette PNGs of train ids, one per image and named like it, and what they were made from."""

import argparse
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import Subset
from tqdm import tqdm

from dataset.catalogue import ClassSet, identity_table
from dataset.errors import DataError, MissingDataError
from dataset.layouts import Record
from dataset.reading import read_image
from dataset.segmentation import SegmentationDataset, Transform

from .. import distributed
from ..files import sweep_below
from ..pictures import save_colours
from ..run import check_damaged
from ..state import StateError
from ..stop_signals import stop_if_asked
from ..watchdog import announced, at
from .claims import claim_directory, read_claim

T = TypeVar("T")


class LabelFolder:
    """Pseudo-labels of `classes` in `directory`."""

    def __init__(self, directory: str, classes: ClassSet) -> None:
        self.directory, self.classes = directory, classes

    def claim(self, resume: bool | str, **made_from: Any) -> None:
        """Note what the labels are made from (see `claim_directory`), and remove what a killed process left half-written."""
        claim_directory(self.directory, {**made_from, "classes": list(self.classes.names)}, resume)
        if distributed.is_main():
            sweep_below(self.directory, (".png", ".json"))
        distributed.wait_for_all()

    def path(self, name: str) -> str:
        """The label of the image that is filed under `name` (with its sub-folders): the same name, always as a PNG."""
        return os.path.join(self.directory, f"{os.path.splitext(name)[0]}.png")

    def has(self, record: Record) -> bool:
        return os.path.exists(self.path(record.name))

    def write(self, name: str, ids: np.ndarray) -> None:
        """Write the label (H,W) uint8 of the image that is filed under `name`: train ids, 255 for ignored."""
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        save_colours(self.path(name), ids, self.classes)

    def check_names(self, records: Sequence[Record]) -> None:
        """See that each image gets a label of its own.

        Raises:
            DataError: two images would share one.
        """
        first: dict[str, Record] = {}
        for record in records:
            other = first.setdefault(self.path(record.name), record)
            if other is not record:
                raise DataError(
                    f"{record.image} and {other.image} have the same name, so their pseudo-labels would overwrite each other"
                )

    def check_classes(self, names: Sequence[str], source: str) -> None:
        """See that `source`, which has classes of these names, fits.

        Raises:
            StateError: they are others than the labels'.
        """
        if tuple(names) != self.classes.names:
            raise StateError(
                f"{source}: has {len(names)} classes ({', '.join(names)}), "
                f"not these {len(self.classes)}: {', '.join(self.classes.names)}"
            )

    def dataset(self, records: Sequence[Record], transform: Transform | None, way_out: str) -> SegmentationDataset:
        """The images of these records with their pseudo-labels.

        Args:
            way_out: what makes missing labels, for the message.

        Raises:
            MissingDataError: a label is missing.
            StateError: the labels are of other classes. Labels from elsewhere have no note that says of which they are.
        """
        self.check_classes(read_claim(self.directory).get("classes", self.classes.names), self.directory)
        missing = [self.path(record.name) for record in records if not self.has(record)]
        if missing:
            raise MissingDataError(f"{missing[0]}: no such pseudo-label ({len(missing)} missing); {way_out}")
        labelled = [Record(record.image, self.path(record.name), record.name) for record in records]
        return SegmentationDataset(labelled, identity_table(len(self.classes)), transform)


def left_over(dataset: SegmentationDataset, done: Callable[[Record], bool]) -> Subset:
    """The images of a data set for which `done(record)` is false.

    All processes decide before one of them goes on, so that they share out the same list.
    """
    positions = [i for i, record in enumerate(dataset.records) if not done(record)]
    distributed.wait_for_all()
    return Subset(dataset, positions)


def readable(
    args: argparse.Namespace, dataset: SegmentationDataset, known: Callable[[Record], bool] = lambda record: False
) -> SegmentationDataset:
    """The images to label: with --on-bad-sample skip without those that cannot be read, which are told.

    Args:
        known: true for images that need not be tried.

    Raises:
        DamagedDataError: there are too many of them.
    """
    if args.on_bad_sample == "error":
        return dataset
    unsure = [record for record in dataset.records if not known(record)]
    mine = unsure[distributed.rank() :: distributed.world_size()]
    with ThreadPoolExecutor(max(1, args.num_workers)) as pool:
        errors = list(progress(pool.map(_error_of, mine), "reading", len(mine)))
    found = [(record.image, error) for record, error in zip(mine, errors, strict=True) if error]
    damaged = dict(row for rows in distributed.gather(found) for row in rows)
    check_damaged(list(damaged.values()), len(damaged), len(dataset))
    for error in sorted(damaged.values()) if distributed.is_main() else ():
        print(f"not labelled: {error}")
    return SegmentationDataset(
        [record for record in dataset.records if record.image not in damaged], None, dataset.transform, labels=False
    )


def _error_of(record: Record) -> str | None:
    try:
        read_image(record.image)
    except DataError as error:
        return str(error)
    return None


def progress(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """`items` with a progress bar in the main process; each is noted for the watchdog.

    Raises:
        Stopped: a signal asks for it; the items so far are done.
    """
    at(title)
    for item in announced(tqdm(items, desc=title, total=total, unit="image", disable=not distributed.is_main()), "image"):
        yield item
        stop_if_asked(f"stage {title}")
