"""IoU from confusion matrices, and the tables that name their protocol. NumPy alone: `compute_iou.py` starts without PyTorch.

A confusion matrix is (C,C), rows ground truth, as an array or a tensor on the CPU.
"""

import csv
import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dataset.catalogue import CLASS_SETS, ClassSet, class_set

from .files import make_parent, write_bytes, write_json

# Two published protocols share the name "mIoU over 13": they give different numbers for one prediction.
SUBSET_OF_MATRIX = "subset of the full confusion matrix"
OTHERS_REMOVED = "other classes' pixels removed first"

# The classes that "mIoU-13" of CLAN's reproduction in PaddlePaddle leaves out, and what it says of itself.
LEFT_OUT_OF_13 = [name for name in CLASS_SETS[19].names if name not in CLASS_SETS[13].names]
MIOU_13 = f"IoUs of {', '.join(LEFT_OUT_OF_13)} set to 0, sum / 13"


def count_pairs(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """(256,256) int64: how often each pair of ids stands in two (H,W) uint8 maps.

    Run by run, for neighbours mostly have the same ids: several times as fast as pixel by pixel.
    """
    label, prediction = label.ravel(), prediction.ravel()
    changes = label[1:] != label[:-1]
    changes |= prediction[1:] != prediction[:-1]
    first = np.concatenate(([0], np.flatnonzero(changes) + 1))
    pairs = label[first].astype(np.intp) << 8 | prediction[first]
    return np.bincount(pairs, np.diff(first, append=label.size), 256**2).astype(np.int64).reshape(256, 256)


def iou_per_class(matrix: ArrayLike, absent: float = math.nan) -> np.ndarray:
    """(C,) float64 intersection over union; `absent` for a class that neither occurs nor is predicted."""
    matrix = np.asarray(matrix, np.float64)
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    return np.where(union > 0, matrix.diagonal() / np.maximum(union, 1), absent)


def mean_iou(matrix: ArrayLike, absent: float = math.nan) -> float:
    """The mean IoU: over the classes that occur or are predicted (nan if there are none), or with `absent` 0 over all (FADA,
    CBST, CRST)."""
    return _mean(iou_per_class(matrix, absent))


def miou_13(matrix: ArrayLike, classes: ClassSet) -> float | None:
    """The sum of the 13 classes' IoUs / 13, an absent class counting 0; None where some of the 13 are none of `classes`."""
    if not set(CLASS_SETS[13].names) <= set(classes.names):
        return None
    members = [classes.names.index(name) for name in CLASS_SETS[13].names]
    return float(iou_per_class(matrix, absent=0.0)[members].sum()) / 13


def iou_scores(
    matrix: ArrayLike, classes: ClassSet | None = None, absent: float = math.nan, with_miou_13: bool = False
) -> dict[str, Any]:
    """What a confusion matrix says, as a JSON-able dict of fractions (None for absent classes).

    `iou` per class, `miou` over all of them, and for each smaller published set of classes its mIoU under both
    protocols: the mean over a subset of these IoUs, and the mIoU once pixels of the other classes are removed.

    Args:
        classes: of the matrix (default: the published set of its size).
        absent: as in `mean_iou`.
        with_miou_13: add `miou_13`, see the function of this name.
    """
    matrix = np.asarray(matrix)
    classes = class_set(len(matrix)) if classes is None else classes
    iou = iou_per_class(matrix, absent)
    subsets = {}
    for size in classes.reported:
        members = [classes.names.index(name) for name in CLASS_SETS[size].names]
        subsets[str(size)] = {
            SUBSET_OF_MATRIX: _none_if_nan(_mean(iou[members])),
            OTHERS_REMOVED: _none_if_nan(mean_iou(matrix[np.ix_(members, members)], absent)),
        }
    return {
        "num_classes": len(classes),
        "miou": _none_if_nan(_mean(iou)),
        "iou": {name: _none_if_nan(value) for name, value in zip(classes.names, iou.tolist(), strict=True)},
        "subsets": subsets,
        **({"miou_13": miou_13(matrix, classes)} if with_miou_13 else {}),
    }


def iou_table(result: Mapping[str, Any]) -> str:
    """`iou_scores(...)` as the text that the originals print, followed by the smaller sets with their protocol."""
    lines = [f"===>{ORIGINAL_NAMES.get(name, name)}:\t{percent(value)}" for name, value in result["iou"].items()]
    lines.append(f"===> mIoU: {percent(result['miou'])}")
    if "miou_13" in result:
        lines.append(f"===> mIoU-13: {percent(result['miou_13'])} ({MIOU_13})")
    for size, by_protocol in result["subsets"].items():
        lines += [f"mIoU of {size} classes ({protocol}): {percent(value)}" for protocol, value in by_protocol.items()]
    return "\n".join(lines)


def write_results(
    results: Mapping[str, Mapping[str, Any]], column: str, json_path: str | None = None, csv_path: str | None = None
) -> None:
    """Write `iou_scores(...)` by name to a JSON and a CSV file, either of which may be None.

    The CSV has one row per name, which stands in `column`: the mIoU, the IoU of each class, and the mIoU of the smaller
    sets, all as fractions and empty where there is none.
    """
    if json_path:
        make_parent(json_path)
        write_json(json_path, results)
    if csv_path:
        make_parent(csv_path)
        rows = [{column: name, **_row(result)} for name, result in results.items()]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(csv_path, text.getvalue().encode())


def _row(result: Mapping[str, Any]) -> dict[str, float | None]:
    row = {"mIoU": result["miou"], **result["iou"]}
    row |= {"mIoU-13": result["miou_13"]} if "miou_13" in result else {}
    for size, by_protocol in result["subsets"].items():
        row |= {f"mIoU of {size} classes ({protocol})": value for protocol, value in by_protocol.items()}
    return row


# AdaptSegNet's tool spells three names in its own way; scripts that read its output expect them.
ORIGINAL_NAMES = {"traffic light": "light", "traffic sign": "sign", "motorcycle": "motocycle"}


def percent(value: float | None) -> str:
    """A fraction in percent with two decimals, as the originals print it; "nan" for None."""
    return "nan" if value is None else str(round(100 * value, 2))


def _mean(values: np.ndarray) -> float:
    """Of those that are numbers; nan if there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
