"""Check a data set before days of training depend on it: every file is read, and a verdict ends the report.

    python scripts/check_data.py gta5 ./data/GTA5
    python scripts/check_data.py cityscapes ./data/Cityscapes --split val
    python scripts/check_data.py crosscity ./data/NTHU_Datasets --city-name Rome --split test --num-classes 13

Errors (missing, unreadable or unfitting files) would stop training; warnings (fewer images than the official set, odd sizes,
ids that no table knows) may be intended. Exit status: 0 fine, also with warnings; 1 errors.
"""

import json
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
from tqdm import tqdm

from dataset.catalogue import class_set, data_set, label_table
from dataset.layouts import find_records
from dataset.reading import read_image
from dataset.segmentation import SIZE_TOLERANCE
from utils.arguments import DATASETS, Parser, positive

# Images in the official releases: (data set, split) to count.
OFFICIAL = {
    ("gta5", "all"): 24966, ("gta5", "train"): 12403, ("gta5", "val"): 6382, ("gta5", "test"): 6181, ("synthia", "all"): 9400,
    ("synthia", "train"): 9000, ("synthia", "val"): 400, ("cityscapes", "train"): 2975, ("cityscapes", "val"): 500,
    ("cityscapes", "test"): 1525, ("crosscity", "train"): 3200, ("crosscity", "test"): 100,
}  # fmt: skip
OFFICIAL_SIZE = {"gta5": (1914, 1052), "synthia": (1280, 760), "cityscapes": (2048, 1024), "crosscity": (2048, 1024)}
EXAMPLES = 5


class Finding(NamedTuple):
    """What one record showed: an error or None, sizes (width, height), the counts of raw ids, and odd facts."""

    path: str
    error: str | None
    size: tuple | None
    ids: dict
    warning: str | None


def get_arguments(arguments=None):
    parser = Parser(__doc__)
    parser.add_argument("name", metavar="DATASET", type=str.lower, choices=DATASETS, help=f"one of {', '.join(DATASETS)}")
    parser.add_argument("root", metavar="ROOT", help="its root in the official layout")
    parser.add_argument("--split", help="split to check (default: all; Cityscapes: train)")
    parser.add_argument("--data-list", metavar="FILE", help="check the images of this list instead")
    parser.add_argument("--city-name", metavar="CITY", help="CrossCity: Rome, Rio, Tokyo or Taipei")
    parser.add_argument("--num-classes", type=int, choices=(19, 16, 13), default=19, help="classes of the histogram")
    parser.add_argument("--workers", type=positive, default=os.cpu_count(), help="processes that read")
    parser.add_argument("--json", metavar="FILE", help="write the report to this file")
    args = parser.parse_args(arguments)
    args.split = args.split or ("train" if args.name in ("cityscapes", "crosscity") else "all")
    return args


def main(args):
    records = find_records(args.name, args.root, args.split, args.data_list, args.city_name)
    with ProcessPoolExecutor(args.workers) as pool:
        check = partial(
            check_record,
            read_label=data_set(args.name, args.root).label_reader(args.root),
            cityscapes_ids=args.name != "synthia",
        )
        findings = list(tqdm(pool.map(check, records, chunksize=8), total=len(records), unit="image"))
    report = summarize(findings, args)
    print_report(report, args)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(report, file, indent=2)
    return 1 if report["errors"] else 0


def check_record(record, read_label, cityscapes_ids):
    """Read one image and its label completely; a `Finding`. With `cityscapes_ids` labels should hold more than 0..18."""
    try:
        image = read_image(record.image)
        size = tuple(image.shape[:0:-1])
        if record.label is None:
            return Finding(record.image, None, size, {}, None)
        label = read_label(record.label)
    except OSError as error:
        return Finding(record.image, str(error), None, {}, None)
    label_size = tuple(label.shape[::-1])
    difference = max(abs(a - b) for a, b in zip(size, label_size, strict=True))
    ids, counts = np.unique(label, return_counts=True)
    ids = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    sizes = f"label is {label_size[0]}x{label_size[1]}, image {size[0]}x{size[1]}"
    if difference > SIZE_TOLERANCE:
        return Finding(record.image, f"{record.label}: {sizes}", size, ids, None)
    if cityscapes_ids and len(ids) > 2 and max(ids.keys() - {255}) < 19:
        warning = "label holds ids 0..18 only: train ids instead of label ids?"
    else:
        warning = f"{sizes}: resized independently, as in the originals" if difference else None
    return Finding(record.image, None, size, ids, warning)


def summarize(findings, args):
    """The report as a JSON-able dict."""
    pixels, files = Counter(), Counter()
    for finding in findings:
        pixels.update(finding.ids)
        files.update(finding.ids.keys())
    table = label_table(data_set(args.name, args.root).ids, class_set(args.num_classes))
    known = {*data_set(args.name).ids, *data_set(args.name).void_ids}
    total = max(sum(pixels.values()), 1)
    histogram = {}
    for class_id, class_name in enumerate(class_set(args.num_classes).names):
        raw = [raw for raw in pixels if table[raw] == class_id]
        histogram[class_name] = {
            "share": sum(pixels[r] for r in raw) / total,
            "images": max((files[r] for r in raw), default=0),
        }
    return {
        "images": len(findings),
        "errors": [finding.error for finding in findings if finding.error],
        "warnings": _warnings(findings, histogram, {raw: files[raw] for raw in pixels if raw not in known}, args),
        "sizes": {f"{w}x{h}": count for (w, h), count in Counter(f.size for f in findings if f.size).most_common()},
        "classes": histogram if pixels else {},
        "ignored_share": sum(count for raw, count in pixels.items() if table[raw] == 255) / total,
    }


def _warnings(findings, histogram, unknown, args):
    warnings = [f"{finding.path}: {finding.warning}" for finding in findings if finding.warning]
    official = OFFICIAL.get((args.name, args.split))
    if official not in (None, len(findings)) and not args.data_list:
        warnings.append(f"{len(findings)} images, the official {args.split} set has {official}")
    odd = [finding for finding in findings if finding.size not in (None, OFFICIAL_SIZE[args.name])]
    if odd:
        width, height = OFFICIAL_SIZE[args.name]
        warnings.append(
            f"{len(odd)} images are not {width}x{height}, for example {odd[0].path} ({odd[0].size[0]}x{odd[0].size[1]})"
        )
    warnings += [
        f"raw id {raw} in {count} labels is in no table of {args.name}; it is ignored" for raw, count in sorted(unknown.items())
    ]
    if any(entry["images"] for entry in histogram.values()):
        absent = [name for name, entry in histogram.items() if not entry["images"]]
        if absent:
            warnings.append(f"classes that never occur: {', '.join(absent)}")
    return warnings


def print_report(report, args):
    print(f"\n{args.name}, {args.split}: {report['images']} images; sizes: "
          + ", ".join(f"{size} ({count})" for size, count in list(report["sizes"].items())[:EXAMPLES]))  # fmt: skip
    if report["classes"]:
        print(f"{'class':14s} {'pixels':>8s} {'images':>7s}")
        for name, entry in report["classes"].items():
            print(f"{name:14s} {100 * entry['share']:7.2f}% {entry['images']:7d}")
        print(f"{'ignored':14s} {100 * report['ignored_share']:7.2f}%")
    for kind in ("warnings", "errors"):
        lines = report[kind]
        for line in lines[:EXAMPLES]:
            print(f"{kind[:-1]}: {line}")
        if len(lines) > EXAMPLES:
            print(f"... and {len(lines) - EXAMPLES} more {kind}")
    if report["errors"]:
        print(f"verdict: NOT USABLE, {len(report['errors'])} of {report['images']} pairs are broken")
    else:
        print(f"verdict: fine{', with ' + str(len(report['warnings'])) + ' warnings' if report['warnings'] else ''}")


if __name__ == "__main__":
    try:
        sys.exit(main(get_arguments()))
    except (OSError, ValueError) as error:
        sys.exit(f"check_data.py: error: {error}")
