"""Evaluate checkpoints: predictions as PNGs and, where there are labels, the IoU of each class at full label resolution.

    python evaluate_cityscapes.py --restore-from ./model/GTA2Cityscapes_multi-ed35151c.pth
    python evaluate_cityscapes.py --restore-from ./snapshots/GTA2Cityscapes_multi --csv all.csv --plot all.png  # of a run
    python evaluate_cityscapes.py --restore-from FILE --set test --save-label-ids ./submission            # for the server

The network is recognised from the checkpoint, and with it its authors' protocol; --protocol chooses another (the same one for
checkpoints that shall compare), and flags change its parts:

    adaptsegnet         images resized to 1024x512, logits upsampled bilinearly to the label's size, the main classifier decides
    fada                the same; its distilled models are scored with --input-size 2048,1024
    clan                the same with the sum of both classifiers (the default for twin classifiers)
    maxsquare           scored at the input size, labels resized to it (--resize-labels); often with --flip (MaxSquare's files)
    crst                images at their own size, logits averaged over scales 0.9, 1, 1.2 and the mirror image (CRST's network)
    cbst                images at their own size, probabilities at 1/8 with the mirror image, bicubic (ResNet-38)

With fada, crst and cbst a class that neither occurs nor is predicted counts 0 in the mean; otherwise it is left out.

For each image <name>.png two files are written to --save:
<name>.png with train ids, which compute_iou.py reads, and <name>_color.png to look at.
"""

import math
import os
import re
import statistics
from concurrent.futures import ThreadPoolExecutor
from glob import escape, glob

from tqdm import tqdm

from dataset.catalogue import class_set, to_label_ids
from dataset.loader import sequential_loader
from dataset.segmentation import build_dataset
from dataset.self_training import FitLongerSide
from dataset.transforms import Resize
from model import WeightsError, describe, load_model
from model.dialects import FADA, MAXSQUARE
from utils.arguments import DATASETS, DEFAULT_ROOTS, Parser, add_speed_flags, data_set, numbers, positive, size
from utils.confusion import ConfusionMatrix
from utils.device import autocast, choose, prepare
from utils.evaluation import predict_coarsely, predictions
from utils.iou import scores, table, write_results
from utils.pictures import curve, save_colours, save_ids, save_picture
from utils.start import exit_with_message

PROTOCOLS = {
    "adaptsegnet": {},
    "maxsquare": {"resize_labels": True},
    "clan": {"heads": "sum"},
    "fada": {"absent": 0.0},
    "cbst": {"input_size": None, "flip": True, "absent": 0.0},
    "crst": {"input_size": None, "flip": True, "scales": (0.9, 1.0, 1.2), "average": "logits", "absent": 0.0},
}
# Files and networks whose authors evaluate in another way than AdaptSegNet.
OF_DIALECT = {MAXSQUARE: "maxsquare", FADA: "fada"}
OF_NETWORK = {"ResNet38": "cbst", "DeeplabRes": "crst", "deeplab_resnet101": "fada", "deeplab_vgg16": "fada"}


def get_arguments(arguments=None):
    parser = Parser(__doc__)
    group = parser.add_argument_group("network")
    group.add_argument(
        "--restore-from",
        "--pretrained-ckpt-file",
        "--weights",
        metavar="FILE",
        help="a checkpoint (file or URL), or a folder of them",
    )
    group.add_argument(
        "--model", "--backbone", metavar="NAME", help="network, where the checkpoint alone cannot tell (see train_*.py --help)"
    )
    group.add_argument("--num-classes", type=int, choices=(19, 16, 13), help="checked against the checkpoint")
    group.add_argument("--aspp-branches", type=int, choices=(2, 4), help="branches of each classifier that are added")
    group.add_argument("--heads", choices=("last", "sum"), help="which logits decide: the main classifier's, or the sum")
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", type=data_set, choices=DATASETS, help="data set to evaluate on (default cityscapes)")
    group.add_argument("--city-name", metavar="CITY", help="CrossCity: Rome, Rio, Tokyo or Taipei")
    group.add_argument(
        "--data-dir",
        "--data-root",
        "--data-root-path",
        metavar="DIR",
        help="its root in the official layout (default ./data/Cityscapes, ...)",
    )
    group.add_argument("--data-list", "--list-path", metavar="FILE", help="list of its images; without one, all of the split")
    group.add_argument("--set", "--split", metavar="SPLIT", help="split to evaluate (default val)")
    group = parser.add_argument_group("protocol")
    group.add_argument(
        "--protocol", choices=PROTOCOLS, help="whose evaluation to follow (default: by the checkpoint, as above)"
    )
    group.add_argument(
        "--input-size", "--crop-size", type=size, metavar="W,H", help="images are resized to this (usually 1024,512)"
    )
    group.add_argument("--test-scales", type=positive, metavar="N", help="cbst: images are resized to this longer side")
    group.add_argument("--test-steps", type=int, choices=(1, 2, 4), default=1, help="cbst: NxN passes over shifted images")
    parser.add_switch("--resize-labels", group=group, help="score at the input size, labels resized to it")
    parser.add_switch("--flip", "--test-flipping", group=group, help="average the scores of the image and its mirror image")
    group.add_argument(
        "--scales",
        "--test-scale",
        type=numbers,
        metavar="LIST",
        help="average over these input scales, for example 0.75,1,1.25",
    )
    parser.set_defaults(resize_labels=None, flip=None)
    group = parser.add_argument_group("what is written")
    group.add_argument(
        "--save",
        "--checkpoint-dir",
        "--output",
        metavar="DIR",
        help="where predictions go (default ./result/cityscapes); `none` writes none",
    )
    parser.add_switch("--no-save-results", group=group, help="the same as --save none")
    group.add_argument("--save-label-ids", metavar="DIR", help="also write predictions as Cityscapes label ids, for its server")
    group.add_argument("--json", metavar="FILE", help="write all figures to this file")
    group.add_argument("--csv", metavar="FILE", help="write one row per checkpoint to this file")
    group.add_argument("--plot", metavar="FILE", help="of a folder of checkpoints: draw mIoU over steps to this PNG")
    group = parser.add_argument_group("FADA's test.py -cfg NAME [--saveres] resume FILE [OUTPUT_DIR DIR] [DATASETS.TEST SET]")
    group.add_argument("-cfg", metavar="NAME", help="--protocol fada, and --input-size 2048,1024 with self_distill in NAME; "
                       "there need not be such a file")  # fmt: skip
    group.add_argument("--saveres", action="store_true", help="write predictions, which -cfg alone does not")
    group.add_argument("options", nargs="*", metavar="KEY VALUE", help="resume, OUTPUT_DIR, DATASETS.TEST (cityscapes_val)")
    add_speed_flags(parser, workers=4)
    parser.also("--gpu", "--gpus")
    parser.also("--num-workers", "--prefetch-threads")
    parser.accept_without_effect("--is-training", "--image-summary", "--save-predictions")
    parser.accept_without_effect("--ignore-label", "--phase", "--base-size", "--batch-size-per-gpu", takes_value=True)
    args = parser.parse_args(arguments)
    apply_fada_options(parser, args)
    if not args.restore_from:
        parser.error("which checkpoint? Name a file or folder with --restore-from")
    args.save = "none" if args.no_save_results else args.save or "./result/cityscapes"
    args.data_dir = args.data_dir or DEFAULT_ROOTS[args.dataset]
    return args


def apply_fada_options(parser, args):
    """FADA's `-cfg NAME resume FILE ...` as our flags, as far as those are not given."""
    options = dict(zip(args.options[::2], args.options[1::2], strict=False))
    unknown = [word for word in args.options[::2] if word not in ("resume", "OUTPUT_DIR", "DATASETS.TEST")]
    if unknown or len(args.options) % 2:
        parser.error(f"{(unknown or args.options[-1:])[0]}: of FADA's settings only resume, OUTPUT_DIR and DATASETS.TEST are "
                     "known here, each with a value; flags do the rest (--input-size, ...)")  # fmt: skip
    args.restore_from = args.restore_from or options.get("resume")
    data = options.get("DATASETS.TEST", "cityscapes_val")
    name, _, split = data.partition("_")
    if name not in DATASETS or not split:
        parser.error(f"DATASETS.TEST {data}: not a data set and a split, such as cityscapes_val")
    args.dataset, args.set = args.dataset or name, args.set or split
    folder = os.path.join(options.get("OUTPUT_DIR", "."), "inference", data)
    if "OUTPUT_DIR" in options or args.cfg:
        args.save = args.save or (folder if args.saveres or not args.cfg else "none")
    if args.cfg:
        args.protocol = args.protocol or "fada"
        if "self_distill" in os.path.basename(args.cfg):
            args.input_size = args.input_size or (2048, 1024)
        if os.path.isdir(args.restore_from or ""):
            args.csv = args.csv or os.path.join(folder, "test_results.csv")


def main(args):
    device = choose(args)
    checkpoints = find_checkpoints(args.restore_from)
    results = {}
    for path in checkpoints:
        stem = os.path.splitext(os.path.basename(path))[0]
        folder = args.save if len(checkpoints) == 1 else os.path.join(args.save, stem)
        if len(checkpoints) > 1:
            print(f"\n{stem}")
        figures = evaluate_checkpoint(args, path, device, None if args.save == "none" else folder)
        if figures is not None:
            results[stem] = figures
            print(table(results[stem]))
            write_results(results, "checkpoint", args.json, args.csv)
    if len(results) > 1:
        print_selection(results)
        points = points_over_steps(results)
        if args.plot and points:
            save_picture(args.plot, curve(points, "mIoU in % over steps"))
    return results


def find_checkpoints(source):
    """The checkpoint files that --restore-from means: itself, or a folder's, in the order of their steps.

    Raises:
        WeightsError: the folder holds none.
    """
    if not os.path.isdir(source):
        return [source]
    paths = [
        path
        for path in glob(os.path.join(escape(source), "*.pth")) + glob(os.path.join(escape(source), "*.params"))
        if not re.search(r"_D\d*\.pth$|state(\.previous)?\.pth$", path)
    ]
    if not paths:
        raise WeightsError(f"{source}: no checkpoints (*.pth, *.params) in this folder")
    return sorted(paths, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)])


def evaluate_checkpoint(args, path, device, folder):
    """Predict the split with one checkpoint, write the pictures, and return the figures (None without labels)."""
    model = load_model(path, args.model, aspp_branches=args.aspp_branches)
    num_classes = model.settings["num_classes"]
    if args.num_classes not in (None, num_classes):
        raise WeightsError(f"{path}: is for {num_classes} classes, not --num-classes {args.num_classes}")
    print(f"{describe(model)}; {model.load_report}")
    prepare(model, args, device)
    protocol = protocol_of(args, model)
    loader, labelled = build_loader(args, num_classes, protocol)
    confusion = ConfusionMatrix(num_classes, device)
    options = {"autocast": lambda: autocast(args, device), **protocol["options"]}
    # Threads write the PNGs while the device computes; an error in one of them surfaces at its `result()`.
    with ThreadPoolExecutor(4) as writers:
        written = []
        for batch, prediction in tqdm(predictions(model, loader, device, **options), total=len(loader), unit="image"):
            if labelled:
                confusion.add(batch["label"].to(device, non_blocking=True), prediction)
            if folder or args.save_label_ids:
                ids = prediction[0].cpu().numpy()
                written.append(writers.submit(save_prediction, folder, args.save_label_ids, batch["name"][0], ids, num_classes))
            if len(written) > 16:
                written.pop(0).result()
        for future in written:
            future.result()
    return scores(confusion.matrix.cpu(), absent=protocol["absent"]) if labelled else None


def protocol_of(args, model):
    """The parts of the protocol: --protocol, or the checkpoint's own, with what other flags change.

    Raises:
        ValueError: a flag that the protocol has no use for.
    """
    name = args.protocol or own_protocol(model)
    chosen = {"flip": False, "resize_labels": False, "input_size": (1024, 512), "heads": "last", "scales": (1.0,),
              "average": "probabilities", "absent": math.nan, **PROTOCOLS[name]}  # fmt: skip
    given = {"input_size": args.input_size, "resize_labels": args.resize_labels, "flip": args.flip, "heads": args.heads,
             "scales": args.scales}  # fmt: skip
    chosen.update({key: value for key, value in given.items() if value is not None})
    if name == "cbst":
        if args.scales or args.heads:
            raise ValueError("--protocol cbst has neither --scales nor --heads")
        if args.input_size and args.test_scales:
            raise ValueError("--input-size and --test-scales both say how large the network's input is; give one")
        options = {"flip": chosen["flip"], "predict": predict_coarsely, "steps": args.test_steps}
    else:
        if args.test_scales or args.test_steps != 1:
            raise ValueError(f"--test-scales and --test-steps belong to --protocol cbst, not {name}; see --scales")
        options = {key: chosen[key] for key in ("flip", "heads", "scales", "average")}
    if chosen["resize_labels"] and not chosen["input_size"]:
        raise ValueError(f"--resize-labels: with --protocol {name} images keep their size; name one with --input-size")
    longer_side = f"longer side {args.test_scales}" if args.test_scales else "as it is"
    print(f"protocol {name}: input {chosen['input_size'] or longer_side}, flip {chosen['flip']}, "
          f"labels {'resized to the input' if chosen['resize_labels'] else 'at their own size'}"
          + ("" if math.isnan(chosen["absent"]) else ", absent classes count 0"))  # fmt: skip
    return {**chosen, "options": options}


def own_protocol(model):
    """How the authors of a network, or of the file that it is from, evaluate it."""
    if model.settings.get("heads") == "twin":
        return "clan"
    return OF_DIALECT.get(model.dialect) or OF_NETWORK.get(model.settings["name"], "adaptsegnet")


def build_loader(args, num_classes, protocol):
    """The split's images one by one, and whether they come with labels."""

    def build(labels):
        transform = Resize(protocol["input_size"], label=protocol["resize_labels"]) if protocol["input_size"] else None
        if args.test_scales:
            transform = FitLongerSide(args.test_scales)
        return build_dataset(
            args.dataset, args.data_dir, args.set, args.data_list, class_set(num_classes), transform, labels, args.city_name
        )

    unlabelled = build(labels=False)
    label = unlabelled.records[0].label
    labelled = label is not None and os.path.exists(label)
    if not labelled:
        print(f"note: no labels for split {args.set}, so there is no score")
    return sequential_loader(build(labels=True) if labelled else unlabelled, args.num_workers), labelled


def save_prediction(folder, label_id_folder, name, ids, num_classes):
    stem = os.path.splitext(name)[0]
    if folder:
        os.makedirs(folder, exist_ok=True)
        save_ids(os.path.join(folder, f"{stem}.png"), ids)
        save_colours(os.path.join(folder, f"{stem.split('.')[0]}_color.png"), ids, num_classes)
    if label_id_folder:
        os.makedirs(label_id_folder, exist_ok=True)
        save_ids(os.path.join(label_id_folder, f"{stem}.png"), to_label_ids(ids, class_set(num_classes)))


def points_over_steps(results):
    """(step, mIoU in %) of the checkpoints whose names end in a number; if two end in the same one, their places count."""
    steps = {stem: re.search(r"(\d+)$", stem) for stem in results}
    scored = [(int(found[1]), 100 * results[stem]["miou"]) for stem, found in steps.items()
              if found and results[stem]["miou"] is not None]  # fmt: skip
    if len(dict(scored)) < len(scored):
        return [(place, value) for place, (_, value) in enumerate(scored, 1)]
    return scored


def print_selection(results):
    """Last and best apart, and how far the last five are from each other: the best of many is chosen with the val labels."""
    values = [(stem, 100 * result["miou"]) for stem, result in results.items() if result["miou"] is not None]
    if not values:
        return
    steps = [value for value in values if re.search(r"\d$", value[0])] or values
    best = max(values, key=lambda value: value[1])
    recent = [value for _, value in steps[-5:]]
    print(f"\nlast: {steps[-1][0]} {steps[-1][1]:.2f}; best: {best[0]} {best[1]:.2f} (chosen with these very labels); "
          f"last {len(recent)}: mean {statistics.mean(recent):.2f}, from {min(recent):.2f} to {max(recent):.2f}")  # fmt: skip


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
