"""Evaluate checkpoints: predictions as PNGs and, where there are labels, the IoU of each class at full label resolution.

    python evaluate_cityscapes.py --restore-from ./model/GTA2Cityscapes_multi-ed35151c.pth
    python evaluate_cityscapes.py --restore-from ./snapshots/GTA2Cityscapes_multi --csv all.csv --plot all.png  # of a run
    python evaluate_cityscapes.py --restore-from FILE --set test --save-label-ids ./submission            # for the server

The network and its classes are recognised from the checkpoint, and with them its authors' protocol; use one --protocol when
comparing checkpoints. Flags change its parts:

    adaptsegnet         images resized to 1024x512, logits upsampled bilinearly to the label's size, the main classifier decides
    fada                the same; its distilled models are scored with --input-size 2048,1024
    clan                the same with the sum of both classifiers (the default for twin classifiers)
    clan-paddle         the same with bicubic interpolation, and the line mIoU-13 (twin classifiers in .pdparams files)
    maxsquare           scored at the input size, labels resized to it (--resize-labels); often with --flip (MaxSquare's files)
    dacs                the same as maxsquare with images resized bilinearly (DACS' files)
    crst                images at their own size, logits averaged over scales 0.9, 1, 1.2 and the mirror image (CRST's network)
    cbst                images at their own size, probabilities at 1/8 with the mirror image, bicubic (ResNet-38)

With fada, crst and cbst a class that neither occurs nor is predicted counts 0 in the mean; otherwise it is left out.

For each image <name>.png two files are written to --save:
<name>.png with train ids, which compute_iou.py reads, and <name>_color.png to look at.

Data and classes of your own: --dataset folder --data-dir DIR (docs/data.md).
"""

import math
import os
import re
import statistics
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from glob import escape, glob
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset.catalogue import DATA_SETS, ClassSet, data_set, fitted_size, to_label_ids
from dataset.layouts import Record, find_records
from dataset.loader import sequential_loader
from dataset.reading import image_size
from dataset.segmentation import dataset_of
from dataset.transforms import Resize
from model import WeightsError, describe, load_model
from model.segmenter import Segmenter
from utils import flags, parser
from utils.coarse_prediction import FitLongerSide, predict_coarsely
from utils.device import autocast, choose, prepare
from utils.errors import RunError, exit_with_message
from utils.evaluation import classes_of_network, on_its_way, predict, predictions
from utils.files import sweep_below
from utils.iou import count_pairs, iou_scores, iou_table, write_results
from utils.locks import locked
from utils.old_names import OLD_NAMES
from utils.outputs import check_file, check_folder, is_json_of_scores, is_our_picture, is_table_of_scores
from utils.parser import Flags, Parser, positive, positive_numbers
from utils.pictures import curve, save_colours, save_ids, save_picture


@dataclass(frozen=True)
class Protocol:
    """How the authors of a method evaluate.

    Attributes:
        input_size: images are resized to this (W,H); None: they keep their size.
        resize_labels: score at the input size instead of the labels' own.
        resize_images: how images are resized, "bicubic" or "bilinear".
        heads, flip, scales, average: see `utils.evaluation.predict`.
        interpolation: see `utils.evaluation.predict`.
        coarse: class probabilities at 1/8 of the input, interpolated bicubically, instead of upsampled logits.
        absent: what counts in the mean for a class that neither occurs nor is predicted; nan leaves it out.
        with_miou_13: see `utils.iou.iou_scores`.
    """

    input_size: tuple[int, int] | None = (1024, 512)
    resize_labels: bool = False
    resize_images: str = "bicubic"
    heads: str = "last"
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    average: str = "probabilities"
    interpolation: str = "bilinear"
    coarse: bool = False
    absent: float = math.nan
    with_miou_13: bool = False


PROTOCOLS = {
    "adaptsegnet": Protocol(),
    "maxsquare": Protocol(resize_labels=True),
    "dacs": Protocol(resize_labels=True, resize_images="bilinear"),
    "clan": Protocol(heads="sum"),
    "clan-paddle": Protocol(heads="sum", interpolation="bicubic", with_miou_13=True),
    "fada": Protocol(absent=0.0),
    "cbst": Protocol(input_size=None, flip=True, coarse=True, absent=0.0),
    "crst": Protocol(input_size=None, flip=True, scales=(0.9, 1.0, 1.2), average="logits", absent=0.0),
}
# Files and networks whose authors evaluate in another way than AdaptSegNet.
OF_FORMAT = {"maxsquare": "maxsquare", "dacs": "dacs", "fada": "fada"}
OF_NETWORK = {"ResNet38": "cbst", "DeeplabRes": "crst", "deeplab_resnet101": "fada", "deeplab_vgg16": "fada"}

FINISHING_THREADS = 8  # they write and count

CHECKPOINT_ENDINGS = (".pth", ".params", ".pdparams")
# Beside the checkpoints of a run: discriminators, our states, and the states of Paddle's optimizers.
NO_CHECKPOINT = re.compile(r"(_D\d*|_optimizer)\.(pth|pdparams)$|state(\.previous)?\.pth$")


def get_arguments(arguments: list[str] | None = None) -> Flags:
    words = Parser(__doc__, OLD_NAMES["evaluate_cityscapes.py"])
    group = words.add_argument_group("network")
    group.add_argument("--restore-from", metavar="FILE", help="a checkpoint (file or URL), or a folder of them")
    group.add_argument("--model", metavar="NAME", help="network, where the checkpoint alone cannot tell (train_*.py --help)")
    group.add_argument("--num-classes", type=positive, metavar="N", help="checked against the checkpoint")
    group.add_argument("--aspp-branches", type=int, choices=(2, 4), help="branches of each classifier that are added")
    group.add_argument("--heads", choices=("last", "sum"), help="which logits decide: the main classifier's, or the sum")
    group = words.add_argument_group("data")
    group.add_argument("--dataset", type=parser.data_set, choices=DATA_SETS, help="data set to score on (default cityscapes)")
    group.add_argument("--data-dir", metavar="DIR", help="its root in the official layout (default ./data/Cityscapes, ...)")
    group.add_argument("--data-list", metavar="FILE", help="list of its images (default: all of the split)")
    group.add_argument("--set", metavar="SPLIT", help="split to evaluate (default val)")
    flags.add_part_flags(group)
    group = words.add_argument_group("protocol")
    group.add_argument(
        "--protocol", choices=PROTOCOLS, help="whose evaluation to follow (default: by the checkpoint, as above)"
    )
    group.add_argument("--input-size", type=parser.size, metavar="W,H", help="images are resized to this (usually 1024,512)")
    group.add_argument("--test-scales", type=positive, metavar="N", help="cbst: images are resized to this longer side")
    group.add_argument("--test-steps", type=int, choices=(1, 2, 4), default=1, help="cbst: NxN passes over shifted images")
    words.add_switch("--resize-labels", group=group, default=None, help="score at the input size, labels resized to it")
    words.add_switch("--flip", group=group, default=None, help="average the scores of the image and its mirror image")
    group.add_argument("--scales", type=positive_numbers, metavar="LIST", help="average over these scales, such as 0.75,1,1.25")
    group = words.add_argument_group("what is written")
    group.add_argument("--save", metavar="DIR", help="where predictions go (default ./result/cityscapes); `none` writes none")
    words.add_switch("--no-save-results", group=group, help="the same as --save none")
    group.add_argument("--save-label-ids", metavar="DIR", help="also write Cityscapes label ids, for its server")
    group.add_argument("--json", metavar="FILE", help="write all figures to this file")
    group.add_argument("--csv", metavar="FILE", help="write one row per checkpoint to this file")
    group.add_argument("--plot", metavar="FILE", help="of a folder of checkpoints: draw mIoU over steps to this PNG")
    group = words.add_argument_group("FADA's test.py -cfg NAME [--saveres] resume FILE [OUTPUT_DIR DIR] [DATASETS.TEST SET]")
    group.add_argument("-cfg", metavar="NAME", help="--protocol fada; with self_distill in NAME --input-size 2048,1024")
    group.add_argument("--saveres", action="store_true", help="write predictions, which -cfg alone does not")
    group.add_argument("options", nargs="*", metavar="KEY VALUE", help="resume, OUTPUT_DIR, DATASETS.TEST (cityscapes_val)")
    flags.add_speed_flags(words, workers=min(16, os.cpu_count() or 1))
    words.describe(num_workers="that read images, usually one a core and at most 16; 0: none")
    args = with_fada_options(words, words.parse_args(arguments))
    if not args.restore_from:
        words.error("which checkpoint? Name a file or folder with --restore-from")
    return args.with_values(
        save="none" if args.no_save_results else args.save or "./result/cityscapes",
        data_dir=args.data_dir or flags.usual_root("--dataset", args.dataset, "--data-dir"),
    )


def with_fada_options(words: Parser, args: Namespace) -> Flags:
    """FADA's `-cfg NAME resume FILE ...` as our flags, as far as those are not given."""
    options = dict(zip(args.options[::2], args.options[1::2], strict=False))
    unknown = [word for word in args.options[::2] if word not in ("resume", "OUTPUT_DIR", "DATASETS.TEST")]
    if unknown or len(args.options) % 2:
        words.error(
            f"{(unknown or args.options[-1:])[0]}: of FADA's settings only resume, OUTPUT_DIR and DATASETS.TEST are known, "
            "each with a value; flags do the rest (--input-size, ...)"
        )
    data = options.get("DATASETS.TEST", "cityscapes_val")
    name, _, split = data.partition("_")
    if name not in DATA_SETS or not split:
        words.error(f"DATASETS.TEST {data}: not a data set and a split, such as cityscapes_val")
    folder = os.path.join(options.get("OUTPUT_DIR", "."), "inference", data)
    usual = {"restore_from": options.get("resume"), "dataset": name, "set": split}
    if "OUTPUT_DIR" in options or args.cfg:
        usual["save"] = folder if args.saveres or not args.cfg else "none"
    if args.cfg:
        usual["protocol"] = "fada"
        if "self_distill" in os.path.basename(args.cfg):
            usual["input_size"] = (2048, 1024)
        if os.path.isdir(args.restore_from or usual["restore_from"] or ""):
            usual["csv"] = os.path.join(folder, "test_results.csv")
    return Flags(**vars(args)).with_values(**{key: value for key, value in usual.items() if not getattr(args, key)})


def main(args: Flags) -> dict[str, Any]:
    check_outputs(args)
    folders = [folder for folder in (args.save, args.save_label_ids) if folder not in (None, "none")]
    with locked(*folders):
        for folder in folders:
            sweep_below(folder, (".png",))
        return evaluate(args)


def evaluate(args: Flags) -> dict[str, Any]:
    """Score the checkpoints one after the other; {name: figures} of those with labels."""
    device = choose(args)
    checkpoints = find_checkpoints(args.restore_from)
    records = find_records(args.dataset, args.data_dir, args.set, args.data_list, flags.part(args, args.dataset))
    results = {}
    for path in checkpoints:
        stem = os.path.splitext(os.path.basename(path))[0]
        folder = args.save if len(checkpoints) == 1 else os.path.join(args.save, stem)
        if len(checkpoints) > 1:
            print(f"\n{stem}")
        figures = evaluate_checkpoint(args, path, records, device, None if args.save == "none" else folder)
        if figures is not None:
            results[stem] = figures
            print(iou_table(results[stem]))
            write_results(results, "checkpoint", args.json, args.csv)
    if len(results) > 1:
        print_selection(results)
        points = points_over_steps(results)
        if args.plot and points:
            save_picture(args.plot, curve(points, "mIoU in % over steps"))
    return results


def check_outputs(args: Flags) -> None:
    """Refuse to write over anything but an earlier evaluation.

    Raises:
        RunError: naming the flag and what is in the way.
    """
    for flag, folder in (("--save", args.save), ("--save-label-ids", args.save_label_ids)):
        if folder not in (None, "none"):
            check_folder(flag, folder, args.data_dir)
    check_file("--json", args.json, is_json_of_scores)
    check_file("--csv", args.csv, is_table_of_scores)
    check_file("--plot", args.plot, is_our_picture)


def find_checkpoints(source: str) -> list[str]:
    """The checkpoint files that --restore-from means: itself, or a folder's, in the order of their steps.

    Raises:
        WeightsError: the folder holds none.
    """
    if not os.path.isdir(source):
        return [source]
    paths = [
        path
        for ending in CHECKPOINT_ENDINGS
        for path in glob(os.path.join(escape(source), f"*{ending}"))
        if not NO_CHECKPOINT.search(path)
    ]
    if not paths:
        raise WeightsError(f"{source}: no checkpoints ({', '.join(f'*{each}' for each in CHECKPOINT_ENDINGS)}) in this folder")
    return sorted(paths, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)])


def evaluate_checkpoint(
    args: Flags, path: str, records: Sequence[Record], device: torch.device, folder: str | None
) -> dict[str, Any] | None:
    """Predict the split's `records` with one checkpoint, write the pictures, and return the figures (None without labels)."""
    model = load_model(path, args.model, aspp_branches=args.aspp_branches)
    if args.num_classes not in (None, model.settings["num_classes"]):
        raise WeightsError(f"{path}: is for {model.settings['num_classes']} classes, not --num-classes {args.num_classes}")
    print(f"{describe(model)}; {model.load_report}")
    prepare(model, args, device)
    classes = classes_of_network(model, data_set(args.dataset, args.data_dir).classes)
    protocol = protocol_of(args, model, records)
    loader, labelled = build_loader(args, records, classes, protocol)
    if protocol.coarse:
        predict_scores = partial(predict_coarsely, flip=protocol.flip, steps=args.test_steps)
    else:
        predict_scores = partial(
            predict,
            heads=protocol.heads,
            flip=protocol.flip,
            scales=protocol.scales,
            average=protocol.average,
            interpolation=protocol.interpolation,
        )
    predicted = predictions(model, loader, device, lambda: autocast(args, device), predict_scores)
    finish = partial(save_and_count, folder, args.save_label_ids, classes)
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    # Threads wait for the device, write and count, so that nothing else keeps this one from feeding it; an error in one of them
    # surfaces at its `result()`. The number of images between the two is bounded, and with it the memory.
    with ThreadPoolExecutor(FINISHING_THREADS) as pool:
        unfinished: deque[Future[np.ndarray]] = deque()
        for batch, prediction in tqdm(predicted, total=len(loader), unit="image"):
            unfinished.append(pool.submit(finish, batch, on_its_way(prediction)))
            if len(unfinished) > 16:
                matrix += unfinished.popleft().result()
        for future in unfinished:
            matrix += future.result()
    return iou_scores(matrix, classes, protocol.absent, protocol.with_miou_13) if labelled else None


def protocol_of(args: Flags, model: Segmenter, records: Sequence[Record]) -> Protocol:
    """--protocol, or the checkpoint's own, with what other flags change.

    Raises:
        RunError: a flag that the protocol has no use for.
    """
    name = args.protocol or own_protocol(model)
    protocol = PROTOCOLS[name]
    if protocol.coarse and (args.scales or args.heads):
        raise RunError(f"--protocol {name} has neither --scales nor --heads")
    if not protocol.coarse and (args.test_scales or args.test_steps != 1):
        raise RunError(f"--test-scales and --test-steps belong to --protocol cbst, not {name}; see --scales")
    if args.input_size and args.test_scales:
        raise RunError("--input-size and --test-scales both say how large the network's input is; give one")
    if protocol.input_size and DATA_SETS[args.dataset].test_size is None:
        protocol = replace(protocol, input_size=fitted_size(image_size(records[0].image)))
    given = {key: getattr(args, key) for key in ("input_size", "resize_labels", "flip", "heads", "scales")}
    protocol = replace(protocol, **{key: value for key, value in given.items() if value is not None})
    if protocol.resize_labels and not protocol.input_size:
        raise RunError(f"--resize-labels: with --protocol {name} images keep their size; name one with --input-size")
    size = protocol.input_size or (f"longer side {args.test_scales}" if args.test_scales else "as it is")
    labels = "resized to the input" if protocol.resize_labels else "at their own size"
    absent = "" if math.isnan(protocol.absent) else ", absent classes count 0"
    print(f"protocol {name}: input {size}, flip {protocol.flip}, labels {labels}{absent}")
    return protocol


def own_protocol(model: Segmenter) -> str:
    """How the authors of a network, or of the file that it is from, evaluate it."""
    if model.settings.get("heads") == "twin":
        return "clan-paddle" if model.checkpoint_format == "paddle" else "clan"
    return OF_FORMAT.get(model.checkpoint_format or "") or OF_NETWORK.get(model.settings["name"], "adaptsegnet")


def build_loader(args: Flags, records: Sequence[Record], classes: ClassSet, protocol: Protocol) -> tuple[DataLoader, bool]:
    """The split's images one by one, and whether they come with labels."""
    transform: Callable | None = None
    if protocol.input_size:
        transform = Resize(protocol.input_size, label=protocol.resize_labels, mode=protocol.resize_images)
    if args.test_scales:
        transform = FitLongerSide(args.test_scales)
    label = records[0].label
    labelled = label is not None and os.path.exists(label)
    if not labelled:
        print(f"note: no labels for split {args.set}, so there is no score")
    dataset = dataset_of(records, args.dataset, args.data_dir, classes, transform, labelled)
    return sequential_loader(dataset, args.num_workers), labelled


def save_and_count(
    folder: str | None, label_id_folder: str | None, classes: ClassSet, batch: dict[str, Any], prediction: Callable[[], Tensor]
) -> np.ndarray:
    """Write a prediction (1,H,W) uint8, and count it against the batch's label, if any: the (C,C) int64 confusion matrix."""
    ids = prediction()[0].numpy()
    save_prediction(folder, label_id_folder, batch["name"][0], ids, classes)
    if "label" not in batch:
        return np.zeros((len(classes), len(classes)), np.int64)
    return count_pairs(batch["label"][0].numpy(), ids)[: len(classes), : len(classes)]


def save_prediction(folder: str | None, label_id_folder: str | None, name: str, ids: np.ndarray, classes: ClassSet) -> None:
    """Write one prediction; `name` may lie in sub-folders."""
    stem = os.path.splitext(name)[0]
    if folder:
        plain = os.path.join(folder, f"{stem}.png")
        os.makedirs(os.path.dirname(plain), exist_ok=True)
        save_ids(plain, ids)
        colored = os.path.join(os.path.dirname(plain), f"{os.path.basename(stem).split('.')[0]}_color.png")
        save_colours(colored, ids, classes)
    if label_id_folder:
        path = os.path.join(label_id_folder, f"{stem}.png")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        save_ids(path, to_label_ids(ids, classes))


def points_over_steps(results: dict[str, Any]) -> list[tuple[int, float]]:
    """(step, mIoU in %) of the checkpoints whose names end in a number; if two end in the same one, their places count."""
    steps = {stem: re.search(r"(\d+)$", stem) for stem in results}
    scored = [
        (int(found[1]), 100 * results[stem]["miou"])
        for stem, found in steps.items()
        if found and results[stem]["miou"] is not None
    ]
    if len(dict(scored)) < len(scored):
        return [(place, value) for place, (_, value) in enumerate(scored, 1)]
    return scored


def print_selection(results: dict[str, Any]) -> None:
    """Last and best apart, and how far the last five are from each other: the best of many is chosen with the val labels."""
    values = [(stem, 100 * result["miou"]) for stem, result in results.items() if result["miou"] is not None]
    if not values:
        return
    steps = [value for value in values if re.search(r"\d$", value[0])] or values
    best = max(values, key=lambda value: value[1])
    recent = [value for _, value in steps[-5:]]
    print(
        f"\nlast: {steps[-1][0]} {steps[-1][1]:.2f}; best: {best[0]} {best[1]:.2f} (chosen with these very labels); "
        f"last {len(recent)}: mean {statistics.mean(recent):.2f}, from {min(recent):.2f} to {max(recent):.2f}"
    )


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
