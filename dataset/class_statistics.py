"""Which class is in which image, and FADA's class-balanced order of the source images that is drawn from it."""

import io
import json
import os
import pickle
import pickletools
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.files import make_parent, write_bytes

from .catalogue import CITYSCAPES, IGNORED, ClassSet
from .errors import DataError
from .layouts import Record
from .segmentation import SegmentationDataset

# Counts of seen classes start afresh after so many draws.
DRAWS_PER_ROUND = 3000


class StatisticsError(DataError):
    """A file of class statistics that cannot be read or does not fit; the message names it and the way out."""


def count_classes(
    dataset: SegmentationDataset, workers: int, progress: bool = True, skip_bad: bool = False
) -> dict[str, list[int]]:
    """{label's name: ascending ids of the classes in it} of a labelled data set, read by `workers` processes.

    Args:
        skip_bad: a label that cannot be read counts as one without classes.

    Raises:
        MissingDataError, ReadError: naming the label file.
    """
    return classes_with_pixels(count_pixels(dataset, workers, progress, skip_bad))


def count_pixels(
    dataset: SegmentationDataset, workers: int, progress: bool = True, skip_bad: bool = False
) -> dict[str, list[int]]:
    """{label's name: pixels of each class id, up to the last one in it}, of the label files as they are; see `count_classes`.

    Raises:
        MissingDataError, ReadError: naming the label file.
    """
    jobs = [(record.label, dataset.table, dataset.read_label, skip_bad) for record in dataset.records]
    with ProcessPoolExecutor(workers) as pool:
        results = pool.map(_pixels_in, jobs, chunksize=16)
        found = list(tqdm(results, total=len(jobs), unit="label", disable=not progress))
    return {label_name(record): counts for record, counts in zip(dataset.records, found, strict=True)}


def classes_with_pixels(pixels: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """{label's name: ascending ids of the classes in it} from `count_pixels`."""
    return {name: [c for c, count in enumerate(counts) if count] for name, counts in pixels.items()}


def label_name(record: Record) -> str:
    """What a label is called in statistics: its file's name, in a plain folder with the folders below that of the split."""
    return os.path.join(os.path.dirname(record.name), os.path.basename(record.label or ""))


def _pixels_in(job: tuple) -> list[int]:
    path, table, read_label, skip_bad = job
    try:
        raw = np.bincount(read_label(path).ravel(), minlength=len(table))
    except DataError:
        if skip_bad:
            return []
        raise
    counts = np.bincount(table, weights=raw, minlength=IGNORED + 1)[:IGNORED].astype(int)
    return np.trim_zeros(counts, "b").tolist()


def write_statistics(
    path: str, file_to_label: Mapping[str, list[int]], classes: ClassSet, pixels: Mapping[str, list[int]] | None = None
) -> None:
    """Write statistics as JSON, atomically; with the `pixels` of `count_pixels`, if they are known."""
    content: dict[str, Any] = {"num_classes": len(classes), "classes": classes.names, "file_to_label": file_to_label}
    if pixels is not None:
        content["pixels"] = pixels
    make_parent(path)
    write_bytes(path, json.dumps(content).encode())


Statistics = tuple[list[list[str]], dict[str, list[int]]]


def read_statistics(path: str, classes: ClassSet) -> Statistics:
    """Read (label_to_file, file_to_label): our JSON, or FADA's `*_label_info.p` with a reader that runs no code.

    Raises:
        StatisticsError: the file is neither, is damaged, or is for other classes.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
        if content[:1] == b"{":
            return _from_json(json.loads(content), path, classes)
        _check_numbers_of_objects(content)
        label_to_file, file_to_label = _PlainUnpickler(io.BytesIO(content)).load()
        return _checked(*_of_subset(label_to_file, file_to_label, classes), path, classes)
    except OSError:
        raise
    except StatisticsError as error:
        raise StatisticsError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StatisticsError(
            f"{path}: cannot be read as class statistics ({reason}); make them anew with scripts/class_statistics.py"
        ) from error


def read_pixels(path: str, classes: ClassSet) -> dict[str, list[int]]:
    """{label's name: pixels of each of the classes} from our JSON.

    Raises:
        StatisticsError: as `read_statistics`, or the file does not count pixels.
    """
    read_statistics(path, classes)
    with open(path, "rb") as file:
        content = json.load(file) if file.read(1) == b"{" and not file.seek(0) else {}
    pixels = content.get("pixels")
    if not isinstance(pixels, dict) or not all(_are_counts(counts, len(classes)) for counts in pixels.values()):
        raise StatisticsError(
            f"{path}: does not count the pixels of the classes; make it anew with scripts/class_statistics.py"
        )
    return {name: counts + [0] * (len(classes) - len(counts)) for name, counts in pixels.items()}


def _are_counts(counts: Any, most: int) -> bool:
    return isinstance(counts, list) and len(counts) <= most and all(type(count) is int and count >= 0 for count in counts)


def _of_subset(label_to_file: list, file_to_label: dict, classes: ClassSet) -> Statistics:
    """FADA's files name no classes: they are Cityscapes' 19, or already those among them that are asked for."""
    if not set(classes.names) <= set(CITYSCAPES.names):
        raise StatisticsError(f"FADA's files count Cityscapes' classes, not {', '.join(classes.names)}")
    if len(label_to_file) != len(CITYSCAPES) or classes.names == CITYSCAPES.names:
        return label_to_file, file_to_label
    train_ids = [CITYSCAPES.names.index(name) for name in classes.names]
    kept = {
        name: [position for position, train_id in enumerate(train_ids) if train_id in labels]
        for name, labels in file_to_label.items()
    }
    return [label_to_file[train_id] for train_id in train_ids], kept


def _check_numbers_of_objects(content: bytes) -> None:
    """See that a pickle gives its objects no numbers beyond its size: Python makes room for all numbers up to the highest."""
    for instruction, argument, _ in pickletools.genops(content):
        if instruction.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > len(content):
            raise StatisticsError("damaged, it counts more objects than it can hold")


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, tuples, dicts, strings and numbers; anything that would need a class or function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise StatisticsError(f"refused, it holds {module}.{name}; class statistics are lists, dicts, strings and numbers")

    def persistent_load(self, pid: Any) -> Any:
        raise StatisticsError("refused, it refers to objects outside the file")


def _from_json(content: dict, path: str, classes: ClassSet) -> Statistics:
    if content.get("num_classes") != len(classes):
        raise StatisticsError(f"{path}: made for {content.get('num_classes')} classes, not {len(classes)}")
    if content["classes"] != list(classes.names):
        raise StatisticsError(
            f"{path}: made for other classes ({', '.join(content['classes'])}), not {', '.join(classes.names)}; make it anew "
            "with scripts/class_statistics.py"
        )
    file_to_label = content["file_to_label"]
    return _checked(files_of_classes(file_to_label, len(classes)), file_to_label, path, classes)


def _checked(label_to_file: list, file_to_label: dict, path: str, classes: ClassSet) -> Statistics:
    if len(label_to_file) != len(classes):
        raise StatisticsError(f"{path}: made for {len(label_to_file)} classes, not {len(classes)}")
    labels = {label for ids in file_to_label.values() for label in ids}
    if not all(isinstance(label, int) and 0 <= label < len(label_to_file) for label in labels):
        raise StatisticsError(f"{path}: holds class ids outside 0..{len(label_to_file) - 1}")
    return label_to_file, file_to_label


def files_of_classes(file_to_label: Mapping[str, list[int]], num_classes: int) -> list[list[str]]:
    """label_to_file, one list of files per class in the order of their names, from file_to_label."""
    lists: list[list[str]] = [[] for _ in range(num_classes)]
    for name in sorted(file_to_label):
        for label in file_to_label[name]:
            lists[label].append(name)
    return lists


def class_balanced_order(
    dataset: SegmentationDataset, statistics: Statistics, seed: int, source: str = "statistics"
) -> "ClassBalancedOrder":
    """A `ClassBalancedOrder` of a data set's images, statistics matched by the names of the labels.

    Raises:
        StatisticsError: the statistics lack some of the images, or no image has any class.
    """
    label_to_file, file_to_label = statistics
    index = {label_name(record): i for i, record in enumerate(dataset.records)}
    missing = [name for name in index if name not in file_to_label]
    if missing:
        raise StatisticsError(
            f"{source}: lacks {len(missing)} of {len(index)} images, first {missing[0]}; make it anew with "
            "scripts/class_statistics.py"
        )
    lists = [[index[name] for name in names if name in index] for names in label_to_file]
    classes = {index[name]: [c for c in ids if c < len(lists)] for name, ids in file_to_label.items() if name in index}
    return ClassBalancedOrder(lists, classes, seed)


class ClassBalancedOrder:
    """FADA's endless order of images in which rare classes are seen often; `order[k]` is the k-th.

    Each draw picks a class with a probability proportional to 1 / log(1.01 + its share of the classes seen since the last
    multiple of 3000 draws), and takes the next image that has it; a class's list of images is shuffled whenever it is used
    up. Classes in no image are never drawn (the original stops there).

    Args:
        lists: for each class the images that contain it.
        classes: {image: the classes in it}.
        seed: of NumPy's legacy generator, as in the original.
    """

    def __init__(self, lists: Sequence[Sequence[int]], classes: Mapping[int, list[int]], seed: int) -> None:
        self.lists, self.classes = [list(files) for files in lists], classes
        self.absent = [c for c, files in enumerate(lists) if not files]
        if len(self.absent) == len(lists):
            raise StatisticsError("no image contains any class")
        self.rng = np.random.RandomState(seed % 2**32)
        self.position = [0] * len(lists)
        self.counts = np.zeros(len(lists))
        self.drawn: list[int] = []

    def __getitem__(self, k: int) -> int:
        while len(self.drawn) <= k:
            self.drawn.append(self._draw())
        return self.drawn[k]

    def _draw(self) -> int:
        if len(self.drawn) % DRAWS_PER_ROUND == 0:
            self.counts[:] = 0
        cumulative = self.probabilities(self.counts).cumsum()
        chosen = int(np.searchsorted(cumulative / cumulative[-1], self.rng.random_sample(), side="right"))
        files = self.lists[chosen]
        if self.position[chosen] >= len(files):
            self.rng.shuffle(files)
            # As published, the first image after a shuffle is skipped.
            self.position[chosen] %= max(1, len(files) - 1)
        image = files[self.position[chosen]]
        self.position[chosen] += 1
        self.counts[self.classes[image]] += 1
        return image

    def probabilities(self, counts: np.ndarray) -> np.ndarray:
        """How likely each class is drawn next after `counts` sightings."""
        total = counts.sum()
        weights = 1 / np.log(1.01 + (counts / total if total else counts))
        weights[self.absent] = 0
        return weights / weights.sum()
