"""Confusion matrix, IoU, and the tables that name their protocol."""

import csv
import json
import math
import os

import torch

from dataset.classes import SUBSETS, class_names, subset

from .distributed import sum_across_processes

# Two published protocols share the name "mIoU over 13": they give different numbers for one prediction.
SUBSET_OF_MATRIX = "subset of the full confusion matrix"
OTHERS_REMOVED = "other classes' pixels removed first"


class ConfusionMatrix:
    """Counts of (ground truth, prediction) pairs, rows ground truth, on the device of what is counted.

    Pixels whose label is not in 0..num_classes-1 are left out.
    """

    def __init__(self, num_classes, device="cpu"):
        self.num_classes = num_classes
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def add(self, label, prediction):
        """Count one or more label maps against predictions of the same shape (any integer type).

        Raises:
            ValueError: the shapes differ, or a counted pixel's prediction is no class.
        """
        if label.shape != prediction.shape:
            raise ValueError(f"prediction of shape {tuple(prediction.shape)} for a label of shape {tuple(label.shape)}")
        # Counting what is no class in a row and a column of its own is 10 times faster than picking out the rest.
        size = self.num_classes + 1
        cells = _clipped(label, self.num_classes) * size + _clipped(prediction, self.num_classes)
        counts = torch.bincount(cells.flatten(), minlength=size**2).view(size, size)[:-1]
        if counts[:, -1].any():
            raise ValueError(f"{int(counts[:, -1].sum())} predicted pixels are no class (0..{self.num_classes - 1})")
        self.matrix += counts[:, :-1].to(self.matrix.device)

    def reduce(self):
        """Sum over all processes, in place."""
        self.matrix = sum_across_processes(self.matrix)
        return self


def _clipped(ids, limit):
    """Ids as int32, `limit` for everything outside 0..limit-1."""
    if ids.dtype.is_signed:
        ids = torch.where(ids < 0, limit, ids)
    return ids.clamp(max=limit).to(torch.int32)


def iou_per_class(matrix, absent=math.nan):
    """(C,) float64 intersection over union; `absent` for a class that neither occurs nor is predicted."""
    matrix = matrix.double().cpu()
    iou = matrix.diag() / (matrix.sum(0) + matrix.sum(1) - matrix.diag())
    return iou.nan_to_num(nan=absent)


def mean_iou(matrix, absent=math.nan):
    """The mean IoU as a float: over the classes that occur or are predicted (nan if there are none), or with `absent` 0 over
    all (FADA, CBST, CRST)."""
    return float(iou_per_class(matrix, absent).nanmean())


def scores(matrix, absent=math.nan):
    """What a confusion matrix of 19, 16 or 13 classes says, as a JSON-able dict of fractions (None for absent classes).

    `iou` per class, `miou` over all of them, and for each smaller published set of classes its mIoU under both
    protocols: the mean over a subset of these IoUs, and the mIoU once pixels of the other classes are removed. `absent` as in
    `mean_iou`.
    """
    num_classes = len(matrix)
    iou = iou_per_class(matrix, absent)
    result = {
        "num_classes": num_classes,
        "miou": _none_if_nan(mean_iou(matrix, absent)),
        "iou": {name: _none_if_nan(value) for name, value in zip(names(num_classes), iou.tolist(), strict=True)},
        "subsets": {},
    }
    if num_classes not in SUBSETS:
        return result
    for size in (size for size in (16, 13) if size < num_classes):
        members = [subset(num_classes).index(train_id) for train_id in subset(size)]
        result["subsets"][str(size)] = {
            SUBSET_OF_MATRIX: _none_if_nan(float(iou[members].nanmean())),
            OTHERS_REMOVED: _none_if_nan(mean_iou(matrix[members][:, members], absent)),
        }
    return result


def names(num_classes):
    """Class names of the known sets, numbers for any other."""
    return class_names(num_classes) if num_classes in SUBSETS else [str(number) for number in range(num_classes)]


def table(result):
    """`scores(...)` as the text that the originals print, followed by the smaller sets with their protocol."""
    lines = [f"===>{ORIGINAL_NAMES.get(name, name)}:\t{percent(value)}" for name, value in result["iou"].items()]
    lines.append(f"===> mIoU: {percent(result['miou'])}")
    for size, by_protocol in result["subsets"].items():
        lines += [f"mIoU of {size} classes ({protocol}): {percent(value)}" for protocol, value in by_protocol.items()]
    return "\n".join(lines)


def write_results(results, column, json_path=None, csv_path=None):
    """Write `scores(...)` by name to a JSON and a CSV file, either of which may be None.

    The CSV has one row per name, which stands in `column`: the mIoU, the IoU of each class, and the mIoU of the smaller
    sets, all as fractions and empty where there is none.
    """
    for path in filter(None, (json_path, csv_path)):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    if json_path:
        with open(json_path, "w") as file:
            json.dump(results, file, indent=2)
    if csv_path:
        rows = [{column: name, **_row(result)} for name, result in results.items()]
        with open(csv_path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)


def _row(result):
    row = {"mIoU": result["miou"], **result["iou"]}
    for size, by_protocol in result["subsets"].items():
        row |= {f"mIoU of {size} classes ({protocol})": value for protocol, value in by_protocol.items()}
    return row


# AdaptSegNet's tool spells three names in its own way; scripts that read its output expect them.
ORIGINAL_NAMES = {"traffic light": "light", "traffic sign": "sign", "motorcycle": "motocycle"}


def percent(value):
    """A fraction in percent with two decimals, as the originals print it; "nan" for None."""
    return "nan" if value is None else str(round(100 * value, 2))


def _none_if_nan(value):
    return None if math.isnan(value) else value
