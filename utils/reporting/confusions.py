"""Confusion matrices of predictions that lie in folders, and what they say."""

import os

import numpy as np
from PIL import Image

from .results import Validation


def confusion_of(folder: str, validation: Validation, num_classes: int) -> np.ndarray | None:
    """(C,C) int64 counts, rows ground truth, of the predictions in a folder; None if one is missing or does not fit."""
    total = np.zeros((num_classes, num_classes), np.int64)
    for record in validation.records:
        truth, prediction = validation.truth(record), read_prediction(folder, record.name)
        if prediction is None or prediction.shape != truth.shape:
            return None
        counted = truth < num_classes
        if (prediction[counted] >= num_classes).any():
            return None
        cells = truth[counted].astype(np.int64) * num_classes + prediction[counted]
        total += np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
    return total


def read_prediction(folder: str, name: str) -> np.ndarray | None:
    """The ids that were predicted for the image filed under `name`, (H,W) uint8; None if there are none."""
    path = os.path.join(folder, f"{os.path.splitext(name)[0]}.png")
    if not os.path.isfile(path):
        return None
    with Image.open(path) as picture:
        return np.array(picture) if picture.mode in ("L", "P") else None


def shares(matrix: np.ndarray) -> np.ndarray:
    """Each row in per cent of its pixels; 0 for a class without pixels."""
    return 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)


def worst(matrix: np.ndarray, count: int = 4) -> list[tuple[int, int, float]]:
    """The most frequent confusions as (class, taken for, per cent of the class's pixels), in classes with pixels."""
    wrong = shares(matrix)
    np.fill_diagonal(wrong, 0)
    largest = np.argsort(wrong, axis=None)[::-1][:count]
    cells = [divmod(int(cell), len(matrix)) for cell in largest]
    return [(row, column, float(wrong[row, column])) for row, column in cells if wrong[row, column] > 0]
