"""Per-class IoU of saved predictions (train ids) against Cityscapes ground truth (label ids).

    python compute_iou.py ./data/Cityscapes/data/gtFine/val result/cityscapes
    python compute_iou.py ./data/Cityscapes/gtFine/val result/run/GTA5_* --csv snapshots.csv

Every *_gtFine_labelIds.png below GT_DIR is scored against PRED_DIR/<city>_<sequence>_<frame>_leftImg8bit.png; with
--devkit-dir, the pairs that its label.txt and val.txt list. One accumulated confusion matrix decides, and classes that neither
occur nor are predicted are left out of the mean. Whatever is missing, of another size or no map of train ids is an error
that names the file: no pair is ever skipped.
"""

import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from glob import escape, glob

import numpy as np

from dataset.catalogue import CITYSCAPES, LABEL_IDS, class_set, label_table
from dataset.reading import read_label
from utils.iou import mean_iou, percent, scores, table, write_results
from utils.parser import Parser, positive

GROUND_TRUTH = "_gtFine_labelIds.png"
PREDICTION = "_leftImg8bit.png"


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
        write_results(results, "predictions", args.json, args.csv)
    if len(results) > 1:
        print()
        for pred_dir, result in results.items():
            print(f"{pred_dir}\t{percent(result['miou'])}")
    return results


def compute_iou(gt_dir, pred_dir, devkit_dir=None, num_classes=19, workers=1, report=lambda line: None):
    """Score a folder of predictions; see the module's docstring for how files are paired.

    Args:
        report: called with a line after every tenth pair, `10 / 500: 41.23`, the mIoU so far (the original's is nan until
            every class has occurred), and with a note if there are predictions without ground truth.

    Returns:
        `utils.metrics.scores` of the accumulated confusion matrix.

    Raises:
        FileNotFoundError, OSError, ValueError: naming the file.
    """
    pairs = find_pairs(gt_dir, pred_dir, devkit_dir)
    _note_unscored(pairs, pred_dir, report)
    total = np.zeros((num_classes, num_classes), np.int64)
    count = partial(count_pair, num_classes=num_classes)
    with ProcessPoolExecutor(min(workers, len(pairs))) if workers > 1 else _InThisProcess() as pool:
        for number, matrix in enumerate(pool.map(count, *zip(*pairs, strict=True)), 1):
            total += matrix
            if number % 10 == 0:
                report(f"{number} / {len(pairs)}: {100 * mean_iou(total):.2f}")
    return scores(total)


def find_pairs(gt_dir, pred_dir, devkit_dir=None):
    """(ground truth, prediction) paths.

    Raises:
        FileNotFoundError: a folder, list or prediction is missing, or there is no ground truth.
        ValueError: the devkit's lists differ in length, or its info.json maps label ids to other train ids.
    """
    for folder in (gt_dir, pred_dir):
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"{folder}: no such folder")
    if devkit_dir:
        pairs = _listed_pairs(gt_dir, pred_dir, devkit_dir)
    else:
        labels = sorted(glob(os.path.join(escape(gt_dir), "**", f"*{GROUND_TRUTH}"), recursive=True))
        if not labels:
            raise FileNotFoundError(f"{gt_dir}: no ground truth (*{GROUND_TRUTH}) in or below this folder")
        pairs = [(label, _prediction_of(label, pred_dir)) for label in labels]
    missing = [path for pair in pairs for path in pair if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(f"{missing[0]}: no such file ({len(missing)} of {len(pairs)} pairs are incomplete)")
    return pairs


def _prediction_of(label, pred_dir):
    name = os.path.basename(label).replace(GROUND_TRUTH, PREDICTION)
    nested = os.path.join(pred_dir, os.path.basename(os.path.dirname(label)), name)
    return nested if os.path.isfile(nested) else os.path.join(pred_dir, name)


def _note_unscored(pairs, pred_dir, report):
    scored = {os.path.basename(prediction) for _, prediction in pairs}
    found = [name for name in os.listdir(pred_dir) if name.endswith(PREDICTION)]
    unscored = sorted(set(found) - scored)
    if unscored:
        report(f"note: {len(unscored)} predictions without ground truth are not scored, for example {unscored[0]}")


def _listed_pairs(gt_dir, pred_dir, devkit_dir):
    _check_mapping(os.path.join(devkit_dir, "info.json"))
    lists = []
    for name in ("label.txt", "val.txt"):
        path = os.path.join(devkit_dir, name)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path}: no such file")
        with open(path) as file:
            lists.append([line.strip() for line in file if line.strip()])
    labels, images = lists
    if len(labels) != len(images):
        raise ValueError(f"{devkit_dir}: label.txt has {len(labels)} lines, val.txt {len(images)}; they are paired by line")
    return [(os.path.join(gt_dir, label), os.path.join(pred_dir, os.path.basename(image)))
            for label, image in zip(labels, images, strict=True)]  # fmt: skip


def _check_mapping(path):
    """The original follows the devkit's mapping; one that is not Cityscapes' own must not be passed over."""
    if not os.path.isfile(path):
        return
    with open(path) as file:
        try:
            pairs = json.load(file)["label2train"]
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}: not the devkit's info.json with label2train ({error!r})") from error
    ours = label_table(LABEL_IDS, CITYSCAPES)
    others = [(label_id, train_id) for label_id, train_id in pairs if ours[label_id] != train_id]
    if others:
        raise ValueError(f"{path}: maps label id {others[0][0]} to {others[0][1]}; only Cityscapes' own mapping is scored")


def count_pair(label_path, prediction_path, num_classes):
    """The (C,C) confusion matrix of one pair.

    Raises:
        FileNotFoundError, OSError, PredictionError: naming the file.
    """
    label = label_table(LABEL_IDS, class_set(num_classes))[read_label(label_path)]
    prediction = read_label(prediction_path)
    if prediction.ndim != 2:
        raise PredictionError(f"{prediction_path}: {prediction.shape[2]} channels; predictions must be 8-bit grey or palette")
    if label.shape != prediction.shape:
        sizes = " against ".join(f"{width}x{height}" for height, width in (prediction.shape, label.shape))
        raise PredictionError(f"{prediction_path}: its size does not fit {label_path} ({sizes}); predict at full size")
    if prediction.max() >= num_classes:
        raise PredictionError(f"{prediction_path}: {_what_is_wrong(int(prediction.max()), num_classes)}")
    counted = label < num_classes
    cells = label[counted].astype(np.int64) * num_classes + prediction[counted]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def _what_is_wrong(largest, num_classes):
    reason = f"holds the id {largest}, but predictions must be train ids 0..{num_classes - 1}"
    if largest < 19:
        return f"{reason}; is this a prediction of more classes? (--num-classes)"
    if largest <= max(LABEL_IDS):
        return f"{reason}; these look like Cityscapes label ids (evaluate_cityscapes.py writes train ids to --save)"
    return reason


class _InThisProcess:
    """A pool of one: the same interface without starting a process."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    map = staticmethod(map)


if __name__ == "__main__":
    try:
        main(get_arguments())
    except (OSError, ValueError) as error:
        sys.exit(f"compute_iou.py: error: {error}")
