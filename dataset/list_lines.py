"""A line of a list file to the name of an image below its folder, in each of the originals' formats.

Functions are called as `line_to_name(line, images)` with the folder of the images, which need not hold the image.
"""

import os
import re
from typing import NamedTuple

from .errors import DataError
from .reading import IMAGE_ENDINGS


class Line(NamedTuple):
    """A line of a list, and where it stands: `LIST, line 3`."""

    text: str
    place: str


def read_lines(list_file: str) -> list[Line]:
    """The lines of a list file without the blank ones."""
    try:
        with open(list_file, encoding="utf-8-sig") as file:
            found = [Line(line.strip(), f"{list_file}, line {number}") for number, line in enumerate(file, 1)]
    except UnicodeDecodeError as error:
        raise DataError(f"{list_file}: not a text file with one image a line ({error.reason})") from error
    lines = [line for line in found if line.text]
    if any("\0" in line.text for line in lines):
        raise DataError(f"{list_file}: not a text file with one image a line (it holds zero bytes)")
    return lines


def pair(line: str) -> tuple[str, str] | None:
    """CBST's and CRST's lists: image and label path with a tab between them (a leading number is dropped)."""
    parts = [part for part in line.split("\t") if part]
    return (parts[-2], parts[-1]) if len(parts) >= 2 else None


def numbered(line: str, images: str, digits: int) -> str:
    """`00001.png`, `images/00001.png`, or MaxSquare's bare `1`."""
    return f"{int(line):0{digits}d}.png" if line.isdigit() and len(line) < digits else _with_ending(line.rsplit("/", 1)[-1])


def of_cityscapes(line: str, images: str) -> str:
    """`aachen/aachen_..._leftImg8bit.png`, with folders before it, or MaxSquare's `train_aachen_000000_000019`.

    Raises:
        DataError: the line names no image of Cityscapes.
    """
    found = re.search(r"(?:^|/|(?:train|val|test)_)([a-z-]+)_(\d{6}_\d{6})", line)
    if not found:
        raise DataError(f"{line!r} in a Cityscapes list names no <city>_<sequence>_<frame>")
    city, rest = found.groups()
    return f"{city}/{city}_{rest}_leftImg8bit.png"


def without_ending(line: str, images: str) -> str:
    """MaxSquare's CrossCity lists: names without ending, of JPEGs or PNGs."""
    name = line.rsplit("/", 1)[-1]
    if name.lower().endswith(IMAGE_ENDINGS):
        return name
    return next(
        (name + ending for ending in (".jpg", ".png") if os.path.exists(os.path.join(images, name + ending))), f"{name}.jpg"
    )


def below_images(line: str, images: str) -> str:
    """A path relative to the folder of the images, or with folders before that, such as the one from the data's root."""
    parts = line.split("/")
    names = ["/".join(parts[start:]) for start in range(len(parts))]
    return next((name for name in names if os.path.isfile(os.path.join(images, name))), line)


def _with_ending(name: str) -> str:
    return name if name.lower().endswith(IMAGE_ENDINGS) else f"{name}.png"
