"""The wall of pictures: images chosen for their rare classes, with what each row made of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dataset.layouts import Record

from .confusions import read_prediction
from .results import Results, Row, Validation

# How many images of a data set are looked at while choosing; more take time and change little.
MOST_CANDIDATES = 500


@dataclass(frozen=True)
class Tile:
    """What a row predicted for an image.

    Attributes:
        prediction: (H,W) uint8 ids.
        right: share of the labelled pixels that are right, in per cent.
    """

    row: Row
    prediction: np.ndarray
    right: float


@dataclass(frozen=True)
class Picture:
    """An image of the wall: (H,W,3) uint8, its label (H,W) uint8, the rare classes in it, and a tile for each row."""

    name: str
    image: np.ndarray
    truth: np.ndarray
    rare: tuple[str, ...]
    tiles: tuple[Tile, ...]


def class_shares(validation: Validation, num_classes: int) -> tuple[list[Record], np.ndarray]:
    """Candidates for the wall, and (N,C) the share of each image's labelled pixels that are of each class."""
    step = max(1, -(-len(validation.records) // MOST_CANDIDATES))
    records = list(validation.records[::step])
    counts = np.stack([np.bincount(validation.truth(record).ravel(), minlength=256)[:num_classes] for record in records])
    return records, counts / np.maximum(counts.sum(1, keepdims=True), 1)


def choose(shares: np.ndarray, count: int) -> list[int]:
    """The positions of `count` images that together show the rare classes well.

    One after the other the image that adds most: each class is worth more the rarer it is in the whole set, and less the more
    of it the chosen images show already.

    Args:
        shares: (N,C) of each image's pixels.
    """
    if len(shares) == 0:
        return []
    mean = shares.mean(0)
    worth = np.where(mean > 0, 1 / np.sqrt(np.maximum(mean, 1e-9)), 0)
    shown = np.zeros(shares.shape[1])
    chosen: list[int] = []
    for _ in range(min(count, len(shares))):
        # A square root, so that a class that is there at all counts more than one that fills the image.
        gain = (worth * (np.sqrt(shown + shares) - np.sqrt(shown))).sum(1)
        gain[chosen] = -np.inf
        chosen.append(int(gain.argmax()))
        shown += shares[chosen[-1]]
    return chosen


def rarest(shares: np.ndarray, position: int, names: Sequence[str], count: int = 3) -> tuple[str, ...]:
    """The classes of an image that are rarest in the whole set, of those that can be seen in it (0.3 % of its pixels)."""
    seen = [c for c in np.argsort(shares.mean(0)).tolist() if shares[position, c] >= 0.003]
    return tuple(names[c] for c in seen[:count])


def wall(results: Results, candidates: tuple[list[Record], np.ndarray], count: int) -> list[Picture]:
    """The chosen images with the first predictions of each row; rows whose predictions are not there have no tile.

    Args:
        candidates: of `class_shares`.
    """
    if results.validation is None:
        return []
    folders = {row: next(filter(None, row.predictions), None) for row in results.rows.values()}
    rows = [row for row, folder in folders.items() if folder]
    if not rows:
        return []
    (records, shares), pictures = candidates, []
    for position in choose(shares, count):
        truth = results.validation.truth(records[position])
        tiles = [_tile(row, records[position], truth) for row in rows]
        rare = rarest(shares, position, results.classes.names)
        image = read_picture(records[position].image, truth.shape)
        pictures.append(Picture(records[position].name, image, truth, rare, tuple(tile for tile in tiles if tile)))
    return pictures


def read_picture(path: str, size: tuple[int, ...]) -> np.ndarray:
    """An image at the size (H,W) of its label, (H,W,3) uint8."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _tile(row: Row, record: Record, truth: np.ndarray) -> Tile | None:
    folder = next(filter(None, row.predictions))
    prediction = read_prediction(folder, record.name)
    if prediction is None or prediction.shape != truth.shape:
        return None
    labelled = truth != 255
    return Tile(row, prediction, 100 * float((prediction == truth)[labelled].mean()) if labelled.any() else 0.0)
