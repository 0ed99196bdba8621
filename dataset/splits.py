"""Which images belong to a split where folders do not say: by the official `split.mat`, or by their numbers."""

import os

from .errors import DataError, MissingDataError
from .matlab import read_variable

SYNTHIA_TRAIN = 9000  # MaxSquare's split: 0..8999 to train on, the rest to validate


def by_official_split(root: str, split: str, names: list[str]) -> list[str]:
    """The names whose numbers the official `split.mat` in `root` puts into `split`.

    Raises:
        MissingDataError: there is no split.mat.
        DataError: it does not hold the split.
    """
    if split == "all":
        return names
    path = os.path.join(root, "split.mat")
    if not os.path.exists(path):
        raise MissingDataError(f"{path}: no such file; the official split is needed for split {split} (or a list file)")
    try:
        numbers = set(read_variable(path, f"{split}Ids").ravel().tolist())
    except Exception as error:
        raise DataError(f"{path}: holds no {split}Ids ({error})") from error
    return [name for name in names if _number(name) in numbers]


def by_synthia_split(root: str, split: str, names: list[str]) -> list[str]:
    """By a `split.mat` if there is one, else the first 9000 numbers are train and the others val.

    Raises:
        DataError: an image has no number.
    """
    if split == "all" or os.path.exists(os.path.join(root, "split.mat")):
        return by_official_split(root, split, names)
    return [name for name in names if (_number(name) < SYNTHIA_TRAIN) == (split == "train")]


def _number(name: str) -> int:
    stem = os.path.splitext(name)[0]
    if not stem.isdigit():
        raise DataError(f"{name}: the name of this image is no number, so it belongs to no split (--data-list names images)")
    return int(stem)
