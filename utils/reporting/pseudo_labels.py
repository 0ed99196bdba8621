"""Pseudo-labels that runs have left: how many there are, how many are right, and what they look like."""

import json
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import escape, glob
from typing import Any

import numpy as np

from dataset.catalogue import DATA_SETS, ClassSet
from dataset.layouts import Record

from .. import flags
from .confusions import read_prediction
from .results import Validation, known_validation
from .runs import TrainingRun

NOTE = "made_from.json"  # beside every set of pseudo-labels
MOST_IMAGES = 400  # more than these say nothing new of the shares


@dataclass(frozen=True)
class LabelSet:
    """A round's or stage's pseudo-labels; shares are in per cent.

    Attributes:
        labelled: of the pixels that have a label, the share with a pseudo-label.
        right: of the pseudo-labels, the share that agree with the true label.
        found: for each class, of its true pixels the share with a pseudo-label of this class; None for absent classes.
    """

    folder: str
    title: str
    labelled: float
    right: float
    found: tuple[float | None, ...]


def label_folders(run: TrainingRun, classes: ClassSet) -> list[str]:
    """The folders of pseudo-labels in a run directory, in their order."""
    notes = glob(os.path.join(escape(run.directory), "**", NOTE), recursive=True)
    folders = sorted(os.path.dirname(path) for path in notes)
    return [folder for folder in folders if _classes_noted(folder) == list(classes.names)]


def training_images(run: TrainingRun, classes: ClassSet) -> Validation | None:
    """The target's training images with their true labels, which only the report looks at; None if there are none."""
    name, root = str(run.flags.get("target")), str(run.flags.get("data_dir_target") or "")
    if name not in DATA_SETS or not root:
        return None
    part = flags.part(Namespace(**run.flags), name)
    return known_validation(name, root, part, classes, str(run.flags.get("set") or "train"))


def measure(folder: str, images: Validation, classes: ClassSet) -> LabelSet | None:
    """Hold the pseudo-labels of a folder against the truth; None if they are not those of these images."""
    size = len(classes)
    truths, kept, right = (np.zeros(size, np.int64) for _ in range(3))
    for record in evenly(images.records, MOST_IMAGES):
        truth, label = images.truth(record), read_prediction(folder, record.name)
        if label is None or label.shape != truth.shape:
            return None
        known = truth < size
        labelled = known & (label < size)
        truths += np.bincount(truth[known], minlength=size)
        kept += np.bincount(label[labelled], minlength=size)
        right += np.bincount(truth[labelled & (truth == label)], minlength=size)
    found = tuple(100 * int(hit) / int(of) if of else None for hit, of in zip(right, truths, strict=True))
    title = os.path.basename(os.path.dirname(folder) if os.path.basename(folder) == "pseudo_labels" else folder)
    title = title.replace("round", "round ") if title.startswith("round") else title
    return LabelSet(folder, title, 100 * kept.sum() / max(truths.sum(), 1), 100 * right.sum() / max(kept.sum(), 1), found)


def evenly(records: Sequence[Record], count: int) -> list[Record]:
    """At most `count` of the records, evenly spread."""
    return [records[position * len(records) // count] for position in range(count)] if len(records) > count else list(records)


def read_thresholds(folder: str) -> Mapping[str, Any] | None:
    """What the round's `thresholds.json` beside a folder of pseudo-labels says; None if there is none."""
    path = os.path.join(os.path.dirname(folder), "thresholds.json")
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def _classes_noted(folder: str) -> list[str] | None:
    try:
        with open(os.path.join(folder, NOTE), encoding="utf-8") as file:
            return json.load(file).get("classes")
    except (ValueError, AttributeError):
        return None
