"""Check a data set before days of training depend on it: every file is read, and a verdict ends the report.

    python scripts/check_data.py gta5 ./data/GTA5
    python scripts/check_data.py cityscapes ./data/Cityscapes --split val
    python scripts/check_data.py crosscity ./data/NTHU_Datasets --city-name Rome --split test --num-classes 13
    python scripts/check_data.py folder ./data/field

Errors (missing, unreadable or unfitting files) would stop training; warnings (fewer images than the official set, odd sizes,
ids that no table knows) may be intended. Exit status: 0 fine, also with warnings; 1 errors.
"""

import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
from tqdm import tqdm

from dataset.catalogue import DATA_SETS, IGNORED, LABEL_IDS, ClassSet, DataSet, class_set, data_set, label_table
from dataset.errors import MissingDataError
from dataset.layouts import Record, find_records
from dataset.reading import read_image
from dataset.segmentation import SIZE_TOLERANCE
from utils.files import make_parent, write_json
from utils.outputs import check_file, is_json_with
from utils.parser import Parser, positive

EXAMPLES = 5
# Records that are read before a process that died is noticed, by each worker.
RECORDS_AT_ONCE = 32


class Finding(NamedTuple):
    """What one record showed: an error or None, sizes (width, height), the counts of raw ids, and odd facts."""

    path: str
    error: str | None
    size: tuple[int, int] | None
    ids: dict[int, int]
    warning: str | None


def get_arguments(arguments: Sequence[str] | None = None) -> Namespace:
    parser = Parser(__doc__)
    parser.add_argument("name", metavar="DATASET", type=str.lower, choices=DATA_SETS, help=f"one of {', '.join(DATA_SETS)}")
    parser.add_argument("root", metavar="ROOT", help="its root in the official layout")
    parser.add_argument("--split", help="split to check (default: all, or train where each split has its own folder)")
    parser.add_argument("--data-list", metavar="FILE", help="check the images of this list instead")
    parts = [f"{known.title}: {', '.join(known.parts)}" for known in DATA_SETS.values() if known.parts]
    parser.add_argument("--city-name", "--condition", dest="part", metavar="PART", help="; ".join(parts))
    parser.add_argument("--num-classes", type=int, choices=(19, 16, 13), help="classes of the histogram (default 19)")
    parser.add_argument("--workers", type=positive, default=os.cpu_count(), help="processes that read")
    parser.add_argument("--json", metavar="FILE", help="write the report to this file")
    args = parser.parse_args(arguments)
    args.split = args.split or ("all" if "all" in DATA_SETS[args.name].images else "train")
    return args


def main(args: Namespace) -> int:
    check_file("--json", args.json, is_json_with("images", "errors", "warnings", "sizes"))
    known = data_set(args.name, args.root)
    records = find_records(args.name, args.root, args.split, args.data_list, args.part)
    if not known.ids and any(record.label for record in records):
        raise MissingDataError(f"{args.root}/classes.json: no such file; it names the classes of the labels (docs/data.md)")
    check = partial(check_record, read_label=known.label_reader(args.root), label_ids=known.ids is LABEL_IDS)
    findings = list(tqdm(check_all(records, check, args.workers), total=len(records), unit="image"))
    classes = known.classes or class_set(args.num_classes or 19)
    report = summarize(findings, known, classes, args)
    print_report(report, args)
    if args.json:
        make_parent(args.json)
        write_json(args.json, report)
    return 1 if report["errors"] else 0


def check_all(records: Sequence[Record], check: Callable[[Record], Finding], workers: int) -> Iterator[Finding]:
    """A finding for each record, in order; a record that ends the process that reads it has an error, and the rest goes on."""
    pool = ProcessPoolExecutor(workers)
    for start in range(0, len(records), workers * RECORDS_AT_ONCE):
        batch = records[start : start + workers * RECORDS_AT_ONCE]
        try:
            yield from list(pool.map(check, batch, chunksize=4))
        except BrokenProcessPool:
            pool = ProcessPoolExecutor(workers)
            yield from (check_alone(record, check) for record in batch)
    pool.shutdown()


def check_alone(record: Record, check: Callable[[Record], Finding]) -> Finding:
    """The finding of a record in a process of its own, so that the process's end can be charged to it."""
    with ProcessPoolExecutor(1) as pool:
        try:
            return pool.submit(check, record).result()
        except BrokenProcessPool:
            return Finding(record.image, f"{record.image}: it or its label ended the process that read it", None, {}, None)


def check_record(record: Record, read_label: Callable[[str], np.ndarray], label_ids: bool) -> Finding:
    """Read one image and its label completely; with `label_ids` labels should hold more than 0..18."""
    try:
        image = read_image(record.image)
        size = (image.shape[2], image.shape[1])
        if record.label is None:
            return Finding(record.image, None, size, {}, None)
        label = read_label(record.label)
    except OSError as error:
        return Finding(record.image, str(error), None, {}, None)
    label_size = (label.shape[1], label.shape[0])
    difference = max(abs(a - b) for a, b in zip(size, label_size, strict=True))
    present, counts = np.unique(label, return_counts=True)
    ids = dict(zip(present.tolist(), counts.tolist(), strict=True))
    sizes = f"label is {label_size[0]}x{label_size[1]}, image {size[0]}x{size[1]}"
    if difference > SIZE_TOLERANCE:
        return Finding(record.image, f"{record.label}: {sizes}", size, ids, None)
    warning = f"{sizes}: resized independently, as in the originals" if difference else None
    if label_ids and len(ids) > 2 and max(ids.keys() - {IGNORED}) < 19:
        warning = "label holds ids 0..18 only: train ids instead of label ids?"
    return Finding(record.image, None, size, ids, warning)


def summarize(findings: Sequence[Finding], known: DataSet, classes: ClassSet, args: Namespace) -> dict[str, Any]:
    """The report as a JSON-able dict."""
    pixels: Counter[int] = Counter()
    files: Counter[int] = Counter()
    for finding in findings:
        pixels.update(finding.ids)
        files.update(finding.ids.keys())
    table = label_table(known.ids, classes)
    total = max(sum(pixels.values()), 1)
    histogram = {}
    for class_id, class_name in enumerate(classes.names):
        raw = [raw for raw in pixels if table[raw] == class_id]
        histogram[class_name] = {
            "share": sum(pixels[r] for r in raw) / total,
            "images": max((files[r] for r in raw), default=0),
        }
    unknown = {raw: files[raw] for raw in pixels if raw not in known.ids and raw not in known.void_ids}
    return {
        "images": len(findings),
        "errors": [finding.error for finding in findings if finding.error],
        "warnings": _warnings(findings, histogram, unknown, known, args),
        "sizes": {f"{w}x{h}": count for (w, h), count in Counter(f.size for f in findings if f.size).most_common()},
        "classes": histogram if pixels else {},
        "ignored_share": sum(count for raw, count in pixels.items() if table[raw] == IGNORED) / total,
    }


def _warnings(
    findings: Sequence[Finding], histogram: dict[str, Any], unknown: dict[int, int], known: DataSet, args: Namespace
) -> list[str]:
    warnings = [f"{finding.path}: {finding.warning}" for finding in findings if finding.warning]
    official = known.images.get(args.split)
    chosen = args.data_list or (args.part and known.usual_parts)
    if official not in (None, len(findings)) and not chosen:
        warnings.append(f"{len(findings)} images, the official {args.split} set has {official}")
    odd = [(finding.path, finding.size) for finding in findings if finding.size and finding.size != known.image_size]
    if odd and known.image_size:
        (path, (width, height)), (usual_width, usual_height) = odd[0], known.image_size
        warnings.append(f"{len(odd)} images are not {usual_width}x{usual_height}, for example {path} ({width}x{height})")
    warnings += [
        f"raw id {raw} in {count} labels is in no table of {args.name}; it is ignored" for raw, count in sorted(unknown.items())
    ]
    if any(finding.ids for finding in findings):
        absent = [name for name, entry in histogram.items() if not entry["images"]]
        if absent:
            warnings.append(f"classes that never occur: {', '.join(absent)}")
    return warnings


def print_report(report: dict[str, Any], args: Namespace) -> None:
    sizes = [f"{size} ({count})" for size, count in list(report["sizes"].items())[:EXAMPLES]]
    print(f"\n{args.name}, {args.split}: {report['images']} images; sizes: {', '.join(sizes)}")
    if report["classes"]:
        width = max(14, *map(len, report["classes"]))
        print(f"{'class':{width}s} {'pixels':>8s} {'images':>7s}")
        for name, entry in report["classes"].items():
            print(f"{name:{width}s} {100 * entry['share']:7.2f}% {entry['images']:7d}")
        print(f"{'ignored':{width}s} {100 * report['ignored_share']:7.2f}%")
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
