"""Per-class IoU of saved predictions (train ids) against ground truth: Cityscapes' (label ids), or a plain folder's.

    python compute_iou.py ./data/Cityscapes/data/gtFine/val result/cityscapes
    python compute_iou.py ./data/Cityscapes/gtFine/val result/run/GTA5_* --csv snapshots.csv
    python compute_iou.py ./data/field/labels/val result/field --classes ./data/field/classes.json

Every *_gtFine_labelIds.png below GT_DIR is scored against PRED_DIR/<city>_<sequence>_<frame>_leftImg8bit.png; with
--devkit-dir, the pairs that its label.txt and val.txt list; with --classes, every PNG against the one of the same path. One
accumulated confusion matrix decides, and classes that neither occur nor are predicted are left out of the mean. Whatever is
missing, of another size or no map of train ids is an error that names the file: no pair is ever skipped.
"""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from functools import partial
from glob import escape, glob
from typing import Any

import numpy as np

from dataset.catalogue import CITYSCAPES, LABEL_IDS, ClassSet, class_set, label_table, read_classes
from dataset.errors import DataError, MissingDataError
from dataset.reading import keep_freed_memory, read_label
from utils.iou import count_pairs, iou_scores, iou_table, mean_iou, percent, write_results
from utils.outputs import check_file, is_json_of_scores, is_table_of_scores
from utils.parser import Parser, positive

GROUND_TRUTH = "_gtFine_labelIds.png"
PREDICTION = "_leftImg8bit.png"
COLOURS = "_color.png"  # what evaluate_cityscapes.py writes beside predictions, to look at

Pairs = list[tuple[str, str]]


class PredictionError(DataError):
    """A prediction that cannot be scored; the message names the file."""


def get_arguments(arguments: Sequence[str] | None = None) -> Namespace:
    parser = Parser(__doc__)
    parser.add_argument("gt_dir", metavar="GT_DIR", help="ground truth, for example data/Cityscapes/gtFine/val")
    parser.add_argument("pred_dir", metavar="PRED_DIR", nargs="+", help="one or more folders of predictions")
    parser.add_argument("--devkit-dir", metavar="DIR", help="folder with val.txt and label.txt, paired by line")
    parser.add_argument("--classes", metavar="FILE", help="classes.json of a plain folder; GT_DIR holds its raw ids")
    parser.add_argument("--num-classes", type=int, choices=(19, 16, 13), help="classes of the predictions (default 19)")
    parser.add_argument("--workers", "--num-workers", type=positive, default=os.cpu_count(), help="processes that read")
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file")
    parser.add_argument("--csv", metavar="FILE", help="write one row per folder to this file")
    args = parser.parse_args(arguments)
    if args.classes and (args.devkit_dir or args.num_classes):
        parser.error("--classes does not go with --devkit-dir or --num-classes: the file says which classes there are")
    return args


def main(args: Namespace) -> dict[str, dict[str, Any]]:
    check_file("--json", args.json, is_json_of_scores)
    check_file("--csv", args.csv, is_table_of_scores)
    classes, ids = read_classes(args.classes) if args.classes else (class_set(args.num_classes or 19), LABEL_IDS)
    find = find_pairs_by_path if args.classes else partial(find_pairs, devkit_dir=args.devkit_dir)
    pairs = {pred_dir: find(args.gt_dir, pred_dir) for pred_dir in args.pred_dir}
    workers = min(args.workers, max(map(len, pairs.values())))
    keep_freed_memory()  # the pool's processes are copies of this one
    results = {}
    with ProcessPoolExecutor(workers) if workers > 1 else nullcontext() as pool:
        for pred_dir in args.pred_dir:
            if len(args.pred_dir) > 1:
                print(f"\n{pred_dir}")
            print(f"Num classes {len(classes)}")
            note_unscored(pairs[pred_dir], pred_dir, print)
            results[pred_dir] = compute_iou(pairs[pred_dir], classes, ids, pool.map if pool else map, print)
            print(iou_table(results[pred_dir]))
            write_results(results, "predictions", args.json, args.csv)
    if len(results) > 1:
        print()
        for pred_dir, result in results.items():
            print(f"{pred_dir}\t{percent(result['miou'])}")
    return results


def compute_iou(
    pairs: Pairs,
    classes: ClassSet = CITYSCAPES,
    ids: Mapping[int, str] = LABEL_IDS,
    parallel_map: Callable = map,
    report: Callable[[str], Any] = lambda line: None,
) -> dict[str, Any]:
    """Score pairs of (ground truth, prediction) files.

    Args:
        pairs: see `find_pairs`.
        classes: of the predictions.
        ids: the class name of each id in the ground truth.
        parallel_map: `map`, or that of a pool of processes.
        report: called with a line after every tenth pair, `10 / 500: 41.23`, the mIoU so far (the original's is nan until
            every class has occurred).

    Returns:
        `utils.iou.iou_scores` of the accumulated confusion matrix.

    Raises:
        MissingDataError, ReadError, PredictionError: naming the file.
    """
    total = np.zeros((len(classes), len(classes)), np.int64)
    count = partial(count_pair, raw_to_train=label_table(ids, classes), num_classes=len(classes))
    for number, matrix in enumerate(parallel_map(count, *zip(*pairs, strict=True)), 1):
        total += matrix
        if number % 10 == 0:
            report(f"{number} / {len(pairs)}: {100 * mean_iou(total):.2f}")
    return iou_scores(total, classes)


def find_pairs(gt_dir: str, pred_dir: str, devkit_dir: str | None = None) -> Pairs:
    """(ground truth, prediction) paths of Cityscapes.

    Raises:
        MissingDataError: a folder, list or prediction is missing, or there is no ground truth.
        DataError: the devkit's lists differ in length, or its info.json maps label ids to other train ids.
    """
    _check_folders(gt_dir, pred_dir)
    if devkit_dir:
        return _complete(_listed_pairs(gt_dir, pred_dir, devkit_dir))
    labels = _below(gt_dir, GROUND_TRUTH)
    return _complete([(os.path.join(gt_dir, label), _prediction_of(label, gt_dir, pred_dir)) for label in labels])


def find_pairs_by_path(gt_dir: str, pred_dir: str) -> Pairs:
    """(ground truth, prediction) paths of a plain folder: the same path below both.

    Raises:
        MissingDataError: a folder or a prediction is missing, or there is no ground truth.
    """
    _check_folders(gt_dir, pred_dir)
    return _complete([(os.path.join(gt_dir, label), os.path.join(pred_dir, label)) for label in _below(gt_dir, ".png")])


def _check_folders(*folders: str) -> None:
    for folder in folders:
        if not os.path.isdir(folder):
            raise MissingDataError(f"{folder}: no such folder")


def _below(folder: str, ending: str) -> list[str]:
    """Paths relative to the folder; hidden files are left out."""
    found = sorted(glob(os.path.join(escape(folder), "**", f"*{ending}"), recursive=True))
    if not found:
        raise MissingDataError(f"{folder}: no ground truth (*{ending}) in or below this folder")
    return [os.path.relpath(path, folder) for path in found]


def _complete(pairs: Pairs) -> Pairs:
    missing = [path for pair in pairs for path in pair if not os.path.isfile(path)]
    if missing:
        raise MissingDataError(f"{missing[0]}: no such file ({len(missing)} of {len(pairs)} pairs are incomplete)")
    return pairs


def _prediction_of(label: str, gt_dir: str, pred_dir: str) -> str:
    city, name = os.path.split(os.path.join(gt_dir, label))
    name = name.replace(GROUND_TRUTH, PREDICTION)
    nested = os.path.join(pred_dir, os.path.basename(city), name)
    return nested if os.path.isfile(nested) else os.path.join(pred_dir, name)


def note_unscored(pairs: Pairs, pred_dir: str, report: Callable[[str], Any]) -> None:
    """Say so if there are predictions without ground truth in the folder (not in those below)."""
    scored = {os.path.basename(prediction) for _, prediction in pairs}
    ending = PREDICTION if all(name.endswith(PREDICTION) for name in scored) else ".png"
    found = {name for name in os.listdir(pred_dir) if name.endswith(ending) and not name.endswith(COLOURS)}
    unscored = sorted(found - scored)
    if unscored:
        report(f"note: {len(unscored)} predictions without ground truth are not scored, for example {unscored[0]}")


def _listed_pairs(gt_dir: str, pred_dir: str, devkit_dir: str) -> Pairs:
    _check_mapping(os.path.join(devkit_dir, "info.json"))
    lists = []
    for name in ("label.txt", "val.txt"):
        path = os.path.join(devkit_dir, name)
        if not os.path.isfile(path):
            raise MissingDataError(f"{path}: no such file")
        with open(path) as file:
            lists.append([line.strip() for line in file if line.strip()])
    labels, images = lists
    if len(labels) != len(images):
        raise DataError(f"{devkit_dir}: label.txt has {len(labels)} lines, val.txt {len(images)}; they are paired by line")
    if not labels:
        raise MissingDataError(f"{devkit_dir}: label.txt and val.txt are empty")
    predictions = [os.path.join(pred_dir, os.path.basename(image)) for image in images]
    return [(os.path.join(gt_dir, label), prediction) for label, prediction in zip(labels, predictions, strict=True)]


def _check_mapping(path: str) -> None:
    """The original follows the devkit's mapping; one that is not Cityscapes' own must not be passed over."""
    if not os.path.isfile(path):
        return
    with open(path) as file:
        try:
            pairs = json.load(file)["label2train"]
        except (ValueError, KeyError) as error:
            raise DataError(f"{path}: not the devkit's info.json with label2train ({error!r})") from error
    ours = label_table(LABEL_IDS, CITYSCAPES)
    others = [(label_id, train_id) for label_id, train_id in pairs if ours[label_id] != train_id]
    if others:
        raise DataError(f"{path}: maps label id {others[0][0]} to {others[0][1]}; only Cityscapes' own mapping is scored")


def count_pair(label_path: str, prediction_path: str, raw_to_train: np.ndarray, num_classes: int) -> np.ndarray:
    """The (C,C) int64 confusion matrix of one pair; `raw_to_train` is a `dataset.catalogue.label_table`.

    Raises:
        MissingDataError, ReadError, PredictionError: naming the file.
    """
    label, prediction = read_label(label_path), read_label(prediction_path)
    if label.shape != prediction.shape:
        sizes = " against ".join(f"{width}x{height}" for height, width in (prediction.shape, label.shape))
        raise PredictionError(f"{prediction_path}: its size does not fit {label_path} ({sizes}); predict at full size")
    if prediction.max() >= num_classes:
        raise PredictionError(f"{prediction_path}: {_what_is_wrong(int(prediction.max()), num_classes)}")
    matrix = np.zeros((256, num_classes), np.int64)
    np.add.at(matrix, raw_to_train, count_pairs(label, prediction)[:, :num_classes])
    return matrix[:num_classes]


def _what_is_wrong(largest: int, num_classes: int) -> str:
    reason = f"holds the id {largest}, but predictions must be train ids 0..{num_classes - 1}"
    if largest < len(CITYSCAPES):
        return f"{reason}; is this a prediction of more classes? (--num-classes)"
    if largest <= max(LABEL_IDS):
        return f"{reason}; these look like label ids (evaluate_cityscapes.py writes train ids to --save)"
    return reason


if __name__ == "__main__":
    try:
        main(get_arguments())
    except (OSError, ValueError, BrokenProcessPool) as error:
        sys.exit(f"compute_iou.py: error: {error}")
