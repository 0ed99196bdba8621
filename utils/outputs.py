"""Where results may go: nothing that was not written here is ever overwritten, and no data set gets files in between.

Every check comes before a script's first byte. It starts without PyTorch, as `compute_iou.py` does.
"""

import csv
import json
import os
from collections.abc import Callable, Iterator

from dataset.reading import IMAGE_ENDINGS

from .errors import RunError

# The text in every PNG that is written here, and where it begins at the latest.
SOFTWARE = ("Software", "SegAdapt")
MARK = b"tEXtSoftware\0SegAdapt"
MARKED_BEFORE = 256


def check_folder(flag: str, folder: str, *data_roots: str | None) -> None:
    """See that pictures may be written to `folder`: all pictures in and below it were written here, and it is no part of a data
    set below `data_roots`.

    Raises:
        RunError: naming `flag`, the folder and a picture that is in the way.
    """
    check_outside_data(flag, folder, *data_roots)
    foreign = next(foreign_pictures(folder), None)
    if foreign is not None:
        raise RunError(
            f"{flag} {folder}: holds pictures that were not written here, such as {foreign}; name a folder of its own"
        )


def check_outside_data(flag: str, folder: str, *data_roots: str | None) -> None:
    """See that `folder` is no data root, and in none of a data root's folders with pictures.

    Raises:
        RunError: naming `flag` and the data root.
    """
    place = os.path.realpath(folder)
    for root in filter(None, data_roots):
        below = os.path.relpath(place, os.path.realpath(root)).split(os.sep)
        if below == ["."]:
            raise RunError(f"{flag} {folder}: is the root of a data set; name a folder of its own")
        if below[0] != ".." and next(foreign_pictures(os.path.join(root, below[0])), None) is not None:
            raise RunError(f"{flag} {folder}: lies among the images or labels of {root}; name a folder outside of it")


def foreign_pictures(folder: str) -> Iterator[str]:
    """The pictures in and below a folder that were not written here."""
    for place, _, names in os.walk(folder, followlinks=True):
        for name in names:
            path = os.path.join(place, name)
            if name.lower().endswith(IMAGE_ENDINGS) and not is_our_picture(path):
                yield path


def check_file(flag: str, path: str | None, ours: Callable[[str], bool] | None = None) -> None:
    """See that a file may be written: it is new, or `ours(path)` knows it as one of the same kind. None is no file.

    Raises:
        RunError: naming `flag` and the file.
    """
    if path is None or not os.path.lexists(path):
        return
    if ours is None:
        raise RunError(f"{flag} {path}: exists already; remove it or choose another name")
    if not os.path.isfile(path) or not ours(path):
        raise RunError(f"{flag} {path}: exists already and was not written here; choose another name")


def is_our_picture(path: str) -> bool:
    """True for a PNG that was written here."""
    try:
        with open(path, "rb") as file:
            return MARK in file.read(MARKED_BEFORE)
    except OSError:
        return False  # a broken link, say: not ours


def is_table_of_scores(path: str) -> bool:
    """True for a CSV of `utils.iou.write_results`, and for an empty file."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return next(csv.reader(file), ["", "mIoU"])[1:2] == ["mIoU"]
    except (ValueError, csv.Error):
        return False


def is_json_of_scores(path: str) -> bool:
    """True for a JSON file of `utils.iou.write_results`."""
    found = _json_object(path)
    return found is not None and all(isinstance(value, dict) and "miou" in value for value in found.values())


def is_json_with(*keys: str) -> Callable[[str], bool]:
    """A test for JSON files whose object has these keys."""
    return lambda path: set(keys) <= (_json_object(path) or {}).keys()


def _json_object(path: str) -> dict | None:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
