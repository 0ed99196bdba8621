"""The results of a comparison: what `results.json` holds, checked, and the gains that follow from it."""

import json
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataset.catalogue import (
    CITYSCAPES,
    CLASS_SETS,
    DATA_SETS,
    ClassSet,
    class_set_from_json,
    data_set,
    label_table,
    spread_colors,
)
from dataset.errors import DataError
from dataset.layouts import IMAGE_ENDINGS, Record, find_records
from dataset.reading import read_label

from ..errors import RunError
from .glossary import knows_target_labels

# One value for each seed, in the order of the seeds; None where there is none.
PerSeed = tuple[float | None, ...]
Paths = tuple[str | None, ...]

ONE_BLOCK = "all"
LABEL_ENDINGS = (("_leftImg8bit.png", "_gtFine_labelIds.png"),)  # of images and labels that do not have the same name


@dataclass(frozen=True, eq=False)
class Row:
    """One row of the comparison.

    Attributes:
        miou: in per cent.
        iou: for each seed the IoU by class, 0..1, None for a class that neither occurs nor is predicted; empty without seed.
        block: key of the block that it belongs to.
        statistics: whose BatchNorm statistics it was scored with, in words.
        baseline: name of the row that it started from, or None.
        seconds: of training.
        peak_memory_gb: while training.
        runs, predictions: folders, None where there are none.
        about: what it is, in a sentence; "" if nobody says.
    """

    name: str
    miou: PerSeed
    iou: tuple[Mapping[str, float | None], ...]
    block: str
    statistics: str
    baseline: str | None
    seconds: PerSeed
    peak_memory_gb: PerSeed
    runs: Paths
    predictions: Paths
    about: str


@dataclass(frozen=True)
class Block:
    """Rows that were treated alike, and the names of the rows that all others in it are held against."""

    title: str
    baselines: tuple[str, ...]


@dataclass(frozen=True)
class Validation:
    """Labelled images, such as those that the rows were scored on."""

    records: tuple[Record, ...]
    table: np.ndarray
    read_label: Callable[[str], np.ndarray]

    def truth(self, record: Record) -> np.ndarray:
        """The label of an image: (H,W) uint8 train ids, 255 for ignored."""
        return self.table[self.read_label(record.label or "")]


@dataclass(frozen=True)
class Results:
    """A comparison: rows in their order, and what they have in common."""

    title: str
    machine: str
    source: str
    target: str
    seeds: tuple[int, ...]
    classes: ClassSet
    rows: Mapping[str, Row]
    blocks: Mapping[str, Block]
    validation: Validation | None

    def rows_of(self, block: str) -> list[Row]:
        return [row for row in self.rows.values() if row.block == block]

    def start(self, row: Row) -> Row:
        """The unadapted row that a row goes back to, by way of others or not; itself if it started from none."""
        passed = [row.name]
        while (before := self.rows[passed[-1]].baseline) is not None and before not in passed:
            passed.append(before)
        return self.rows[passed[-1]]

    def variant(self, base: str, row: Row) -> Row:
        """The baseline `base` of the network of `row`: where that started from `source-only, twin`, it is `<base>, twin` if
        there is such a row."""
        name = self.start(row).name
        return self.rows.get(base + name[len(stem(name)) :], self.rows[base])

    def is_reference(self, row: Row) -> bool:
        """Whether others are held against a row: it is a variant of a baseline of its block, saw the target's labels, or
        started from no row while others did."""
        has_no_start = row.baseline is None and any(other.baseline for other in self.rows.values())
        baselines = {stem(name) for name in self.blocks[row.block].baselines}
        return has_no_start or stem(row.name) in baselines or knows_target_labels(row.name)

    def best(self) -> Row:
        """The row with the highest mean mIoU of those that are no references (or of all if there are no others), in the first
        block that has such rows."""
        found = [[row for row in self.rows_of(key) if not self.is_reference(row)] for key in self.blocks]
        methods = next(filter(None, found), list(self.rows.values()))
        return max(methods, key=lambda row: mean(row.miou))


def stem(name: str) -> str:
    """A row's name without its variant: `AdaBN` of `AdaBN, twin`."""
    return name.split(", ")[0]


def mean(values: Sequence[float | None]) -> float:
    """Of the values that are there; nan if there are none."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else math.nan


def deviation(values: Sequence[float | None]) -> float | None:
    """The sample standard deviation, None for fewer than two values."""
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) > 1 else None


def gains(row: Row, baseline: Row) -> PerSeed:
    """What `row` has more than `baseline` for each seed, in points of mIoU."""
    pairs = zip(row.miou, baseline.miou, strict=True)
    return tuple(None if own is None or other is None else own - other for own, other in pairs)


def class_iou(row: Row, name: str) -> PerSeed:
    """The IoU of a class for each seed, in per cent."""
    return tuple(None if iou.get(name) is None else 100 * float(iou[name] or 0) for iou in row.iou)


def subset_miou(row: Row, names: Sequence[str]) -> PerSeed:
    """The mean IoU over some of the classes for each seed, in per cent: a subset of the full confusion matrix."""
    by_seed = []
    for iou in row.iou:
        known = [float(value) for name in names if (value := iou.get(name)) is not None]
        by_seed.append(100 * statistics.fmean(known) if known else None)
    return tuple(by_seed)


def reported_subsets(classes: ClassSet) -> dict[int, tuple[str, ...]]:
    """The published sets of classes that are smaller than `classes` and part of it: their sizes and names."""
    return {size: known.names for size, known in CLASS_SETS.items() if set(known.names) < set(classes.names)}


def read_results(path: str) -> Results:
    """Read a `results.json`.

    Raises:
        RunError: it is missing, damaged or contradicts itself; the message names the file and the key.
    """
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: damaged, this is no JSON ({error})") from error
    return parse_results(record, path)


def parse_results(record: Any, path: str) -> Results:
    """The results that a `results.json` at `path` describes; its folders are relative to the file.

    Raises:
        RunError: see `read_results`.
    """
    if not isinstance(record, dict) or not isinstance(record.get("rows"), dict):
        raise RunError(f"{path}: holds no results: there is no object 'rows' in it")
    if not record["rows"]:
        raise RunError(f"{path}: 'rows' is empty, there is nothing to report")
    root = os.path.dirname(os.path.abspath(path))
    classes = _classes(record, path)
    seeds = tuple(record.get("seeds") or range(max(_length(row) for row in record["rows"].values())))
    rows = {name: _row(name, row, seeds, classes, root, path) for name, row in record["rows"].items()}
    for row in rows.values():
        if row.baseline is not None and row.baseline not in rows:
            raise RunError(f"{path}: row {row.name!r} is compared with {row.baseline!r}, which is no row")
    blocks = _blocks(record, rows, path)
    return Results(
        title=str(record.get("title") or "Adaptation to another domain"),
        machine=str(record.get("machine") or ""),
        source=str(record.get("source") or ""),
        target=str(record.get("target") or ""),
        seeds=seeds,
        classes=classes,
        rows=rows,
        blocks=blocks,
        validation=_validation(record, classes, root),
    )


def _length(row: Any) -> int:
    values = row.get("miou") if isinstance(row, dict) else None
    return len(values) if isinstance(values, list) else 0


def _classes(record: Mapping[str, Any], path: str) -> ClassSet:
    names, colors = record.get("classes"), record.get("colors")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RunError(f"{path}: 'classes' is no list of names")
    try:
        return class_set_from_json({"names": names, "colors": colors or spread_colors(names)})
    except DataError as error:
        raise RunError(f"{path}: 'classes': {error}") from error


def _row(name: str, row: Any, seeds: Sequence[int], classes: ClassSet, root: str, path: str) -> Row:
    where = f"{path}: row {name!r}"
    if not isinstance(row, dict):
        raise RunError(f"{where} is no object")
    miou = _numbers(row, "miou", seeds, where)
    if all(value is None for value in miou):
        raise RunError(f"{where} has no 'miou'")
    return Row(
        name=name,
        miou=miou,
        iou=tuple(_iou(entry, classes, where) for entry in _list(row, "iou", seeds, where)),
        block=str(row.get("block") or ONE_BLOCK),
        statistics=str(row.get("statistics") or ""),
        baseline=row.get("baseline"),
        seconds=_numbers(row, "seconds", seeds, where),
        peak_memory_gb=_numbers(row, "peak_memory_gb", seeds, where),
        runs=_paths(row, "runs", seeds, root, where),
        predictions=_paths(row, "predictions", seeds, root, where),
        about=str(row.get("about") or ""),
    )


def _list(row: Mapping[str, Any], key: str, seeds: Sequence[int], where: str) -> list[Any]:
    """One entry for each seed; None for those behind the end of a shorter list."""
    values = row.get(key)
    values = [] if values is None else values
    if not isinstance(values, list) or len(values) > len(seeds):
        raise RunError(f"{where}: {key!r} is no list of at most {len(seeds)} values, one for each seed")
    return values + [None] * (len(seeds) - len(values))


def _numbers(row: Mapping[str, Any], key: str, seeds: Sequence[int], where: str) -> PerSeed:
    values = _list(row, key, seeds, where)
    for value in values:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)):
            raise RunError(f"{where}: {key!r} holds {value!r}, which is no number")
    return tuple(values)


def _paths(row: Mapping[str, Any], key: str, seeds: Sequence[int], root: str, where: str) -> Paths:
    values = _list(row, key, seeds, where)
    if not all(value is None or isinstance(value, str) for value in values):
        raise RunError(f"{where}: {key!r} holds something that is no folder")
    return tuple(None if value is None else os.path.normpath(os.path.join(root, value)) for value in values)


def _iou(entry: Any, classes: ClassSet, where: str) -> Mapping[str, float | None]:
    if entry is None:
        return {}
    if not isinstance(entry, dict) or set(entry) != set(classes.names):
        odd = sorted(set(entry) ^ set(classes.names)) if isinstance(entry, dict) else ["no object"]
        raise RunError(f"{where}: its 'iou' has other classes than 'classes' says, see {odd[0]!r}")
    _numbers({"iou": list(entry.values())}, "iou", classes.names, where)  # type: ignore[arg-type]  # only the length counts
    return entry


def _blocks(record: Mapping[str, Any], rows: Mapping[str, Row], path: str) -> dict[str, Block]:
    described = record.get("blocks") or {}
    blocks = {}
    for key in dict.fromkeys(row.block for row in rows.values()):
        entry = described.get(key, {})
        baselines = tuple(name for name in entry.get("baselines", ()) if name in rows)
        blocks[key] = Block(str(entry.get("title") or ("" if key == ONE_BLOCK else key)), baselines)
    missing = [key for key in described if key not in blocks]
    if missing and len(blocks) == 1 and ONE_BLOCK in blocks:
        raise RunError(f"{path}: block {missing[0]!r} has no rows: they do not say which 'block' they belong to")
    return blocks


def _validation(record: Mapping[str, Any], classes: ClassSet, root: str) -> Validation | None:
    """The labelled images, None where they are not there (any more): two folders, or a data set and its root."""
    entry = record.get("validation") or {}
    if not isinstance(entry, dict):
        return None
    if entry.get("root"):
        place = os.path.normpath(os.path.join(root, entry["root"]))  # the folder of results.json need not be there yet
        return known_validation(str(entry.get("dataset")), place, entry.get("part"), classes)
    images, labels = (os.path.normpath(os.path.join(root, str(entry.get(key) or ""))) for key in ("images", "labels"))
    if not entry.get("images") or not entry.get("labels") or not os.path.isdir(images) or not os.path.isdir(labels):
        return None
    records = [found for name in _pictures(images) if (found := _record(images, labels, name))]
    of_cityscapes = set(classes.names) <= set(CITYSCAPES.names)
    ids = DATA_SETS["cityscapes"].ids if of_cityscapes else dict(enumerate(classes.names))
    return Validation(tuple(records), label_table(ids, classes), read_label) if records else None


def known_validation(name: str, root: str, part: str | None, classes: ClassSet, split: str = "val") -> Validation | None:
    """The labelled images of a split of a data set; None if they are not there."""
    try:
        known = data_set(name, root)
        records = [record for record in find_records(name, root, split, part=part) if os.path.exists(record.label or "")]
    except DataError:
        return None
    return Validation(tuple(records), label_table(known.ids, classes), known.label_reader(root)) if records else None


def _pictures(folder: str) -> list[str]:
    found = []
    for place, _, names in os.walk(folder):
        found += [os.path.relpath(os.path.join(place, name), folder) for name in names if name.lower().endswith(IMAGE_ENDINGS)]
    return sorted(name for name in found if not os.path.basename(name).startswith("."))


def _record(images: str, labels: str, name: str) -> Record | None:
    endings = [(of_image, of_label) for of_image, of_label in LABEL_ENDINGS if name.endswith(of_image)]
    stem, ending = (name[: -len(endings[0][0])], endings[0][1]) if endings else (os.path.splitext(name)[0], ".png")
    label = os.path.join(labels, stem + ending)
    if not os.path.exists(label):
        return None
    filed_under = os.path.basename(name) if endings else name  # a layout with endings has names that differ in all folders
    return Record(os.path.join(images, name), label, filed_under)
