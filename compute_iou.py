"""Per-class IoU of saved predictions (train ids) against Cityscapes ground truth (label ids).

    python compute_iou.py ./data/Cityscapes/data/gtFine/val result/cityscapes
    python compute_iou.py ./data/Cityscapes/gtFine/val result/run/GTA5_* --csv snapshots.csv

Every *_gtFine_labelIds.png below GT_DIR is scored against PRED_DIR/<city>_<sequence>_<frame>_leftImg8bit.png; with
--devkit-dir, the pairs that its label.txt and val.txt list. One accumulated confusion matrix decides, and classes that neither
occur nor are predicted are left out of the mean. Whatever is missing, of another size or no map of train ids is an error
that names the file: no pair is ever skipped.
"""

import csv
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from glob import glob

import numpy as np
import torch

from dataset.classes import TRAINID_TO_LABELID, label_table, subset
from dataset.reading import read_label
from utils.arguments import Parser, positive
from utils.metrics import iou_per_class, scores, table

GROUND_TRUTH = "_gtFine_labelIds.png"


class PredictionError(ValueError):
    """A prediction that cannot be scored; the message names the file."""


def get_arguments(arguments=None):
    parser = Parser(__doc__)
    parser.add_argument("gt_dir", metavar="GT_DIR", help="ground truth, for example data/Cityscapes/gtFine/val")
    parser.add_argument("pred_dir", metavar="PRED_DIR", nargs="+", help="one or more folders of predictions")
    parser.add_argument("--devkit-dir", metavar="DIR", help="folder with val.txt and label.txt, paired by line")
    parser.add_argument("--num-classes", type=int, choices=(19, 16, 13), default=19, help="classes of the predictions")
    parser.add_argument("--workers", type=positive, default=os.cpu_count(), help="processes that read")
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file")
    parser.add_argument("--csv", metavar="FILE", help="write one row per folder to this file")
    return parser.parse_args(arguments)


def main(args):
    results = {}
    for pred_dir in args.pred_dir:
        if len(args.pred_dir) > 1:
            print(f"\n{pred_dir}")
        print(f"Num classes {args.num_classes}")
        results[pred_dir] = compute_iou(args.gt_dir, pred_dir, args.devkit_dir, args.num_classes, args.workers, print)
        print(table(results[pred_dir]))
    if len(results) > 1:
        print()
        for pred_dir, result in results.items():
            print(f"{pred_dir}\t{100 * result['miou']:.2f}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=2)
    if args.csv:
        write_csv(args.csv, results)


def compute_iou(gt_dir, pred_dir, devkit_dir=None, num_classes=19, workers=1, report=lambda line: None):
    """Score a folder of predictions; see the module's docstring for how files are paired.

    Args:
        report: called with a line after every tenth pair, `10 / 500: 41.23`, the mIoU so far.

    Returns:
        `utils.metrics.scores` of the accumulated confusion matrix.

    Raises:
        FileNotFoundError, OSError, PredictionError: naming the file.
    """
    pairs = find_pairs(gt_dir, pred_dir, devkit_dir)
    total = np.zeros((num_classes, num_classes), np.int64)
    count = partial(count_pair, num_classes=num_classes)
    with ProcessPoolExecutor(min(workers, len(pairs))) if workers > 1 else _InThisProcess() as pool:
        for number, matrix in enumerate(pool.map(count, *zip(*pairs, strict=True)), 1):
            total += matrix
            if number % 10 == 0:
                report(f"{number} / {len(pairs)}: {100 * float(iou_per_class(torch.from_numpy(total)).nanmean()):.2f}")
    return scores(torch.from_numpy(total))


def find_pairs(gt_dir, pred_dir, devkit_dir=None):
    """(ground truth, prediction) paths.

    Raises:
        FileNotFoundError: a folder, list or prediction is missing, or there is no ground truth.
        ValueError: the devkit's lists differ in length.
    """
    for folder in (gt_dir, pred_dir):
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"{folder}: no such folder")
    if devkit_dir:
        pairs = _listed_pairs(gt_dir, pred_dir, devkit_dir)
    else:
        labels = sorted(glob(os.path.join(gt_dir, "**", f"*{GROUND_TRUTH}"), recursive=True))
        if not labels:
            raise FileNotFoundError(f"{gt_dir}: no ground truth (*{GROUND_TRUTH}) in or below this folder")
        pairs = [(label, _prediction_of(label, pred_dir)) for label in labels]
    missing = [path for pair in pairs for path in pair if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(f"{missing[0]}: no such file ({len(missing)} of {len(pairs)} pairs are incomplete)")
    return pairs


def _prediction_of(label, pred_dir):
    name = os.path.basename(label).replace(GROUND_TRUTH, "_leftImg8bit.png")
    nested = os.path.join(pred_dir, os.path.basename(os.path.dirname(label)), name)
    return nested if os.path.isfile(nested) else os.path.join(pred_dir, name)


def _listed_pairs(gt_dir, pred_dir, devkit_dir):
    lists = []
    for name in ("label.txt", "val.txt"):
        path = os.path.join(devkit_dir, name)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path}: no such file")
        with open(path) as file:
            lists.append([line.strip() for line in file if line.strip()])
    labels, images = lists
    if len(labels) != len(images):
        raise ValueError(
            f"{devkit_dir}: label.txt has {len(labels)} lines, val.txt {len(images)}; they are paired by line"
        )
    return [(os.path.join(gt_dir, label), os.path.join(pred_dir, os.path.basename(image)))
            for label, image in zip(labels, images, strict=True)]  # fmt: skip


def count_pair(label_path, prediction_path, num_classes):
    """The (C,C) confusion matrix of one pair.

    Raises:
        FileNotFoundError, OSError, PredictionError: naming the file.
    """
    label = label_table("cityscapes", num_classes)[read_label(label_path).numpy()]
    prediction = read_label(prediction_path).numpy()
    if label.shape != prediction.shape:
        sizes = " against ".join(f"{width}x{height}" for height, width in (prediction.shape, label.shape))
        raise PredictionError(f"{prediction_path}: its size does not fit {label_path} ({sizes}); predict at full size")
    if prediction.max() >= num_classes:
        raise PredictionError(f"{prediction_path}: {_what_is_wrong(prediction, num_classes)}")
    counted = label < num_classes
    cells = label[counted].astype(np.int64) * num_classes + prediction[counted]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def _what_is_wrong(prediction, num_classes):
    found = set(np.unique(prediction).tolist())
    label_ids = {TRAINID_TO_LABELID[train_id] for train_id in subset(num_classes)}
    if found <= label_ids | {0}:
        return (
            "these look like Cityscapes label ids; predictions must be train ids, as evaluate_cityscapes.py writes them"
        )
    return f"holds the id {max(found)}, but predictions must be train ids 0..{num_classes - 1}"


class _InThisProcess:
    """A pool of one: the same interface without starting a process."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    map = staticmethod(map)


def write_csv(path, results):
    names = list(next(iter(results.values()))["iou"])
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["predictions", "mIoU", *names])
        for pred_dir, result in results.items():
            writer.writerow([pred_dir, result["miou"], *(result["iou"][name] for name in names)])


if __name__ == "__main__":
    try:
        main(get_arguments())
    except (OSError, ValueError) as error:
        sys.exit(f"compute_iou.py: error: {error}")
