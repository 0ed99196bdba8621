"""Evaluate checkpoints: predictions as PNGs and, where there are labels, the IoU of each class at full label resolution.

    python evaluate_cityscapes.py --restore-from ./model/GTA2Cityscapes_multi-ed35151c.pth
    python evaluate_cityscapes.py --restore-from ./snapshots/GTA2Cityscapes_multi --csv all.csv --plot all.png  # of a run
    python evaluate_cityscapes.py --restore-from FILE --set test --save-label-ids ./submission            # for the server

The network is recognised from the checkpoint, and with it the protocol; --protocol chooses another, and flags change its parts:

    adaptsegnet, fada   images resized to 1024x512, logits upsampled bilinearly to the label's size, the main classifier decides
                        (FADA scores its distilled models with --input-size 2048,1024)
    clan                the same with the sum of both classifiers (the default for twin classifiers)
    maxsquare           scored at the input size, labels resized to it (--resize-labels); often with --flip
    crst                images at their own size, logits averaged over scales 0.9, 1, 1.2 and the mirror image (CRST's network)
    cbst                images at their own size, probabilities at 1/8 with the mirror image, bicubic (ResNet-38)

For each image <name>.png two files are written to --save:
<name>.png with train ids, which compute_iou.py reads, and <name>_color.png to look at.
"""

import os
import re
import statistics
from concurrent.futures import ThreadPoolExecutor
from glob import escape, glob

from tqdm import tqdm

from dataset import build_dataset, sequential_loader
from dataset.classes import to_label_ids
from dataset.transforms import Resize
from model import WeightsError, load_model
from utils.arguments import DATASETS, DEFAULT_ROOTS, Parser, add_speed_flags, numbers, size
from utils.device import autocast, choose, prepare
from utils.evaluation import predict_coarsely, predictions
from utils.metrics import ConfusionMatrix, scores, table, write_results
from utils.pictures import curve, save_colours, save_ids, save_picture
from utils.start import exit_with_message

PROTOCOLS = {
    "adaptsegnet": {},
    "maxsquare": {"resize_labels": True},
    "clan": {"heads": "sum"},
    "fada": {},
    "cbst": {"input_size": None, "flip": True},
    "crst": {"input_size": None, "flip": True, "scales": (0.9, 1.0, 1.2), "average": "logits"},
}
# Networks whose authors evaluate in another way than AdaptSegNet; twin classifiers add up by themselves.
OF_NETWORK = {"ResNet38": "cbst", "DeeplabRes": "crst"}


def get_arguments(arguments=None):
    parser = Parser(__doc__)
    group = parser.add_argument_group("network")
    group.add_argument(
        "--restore-from",
        "--pretrained-ckpt-file",
        required=True,
        metavar="FILE",
        help="a checkpoint (file or URL), or a folder of them",
    )
    group.add_argument(
        "--model", metavar="NAME", help="network, where the checkpoint alone cannot tell (see train_*.py --help)"
    )
    group.add_argument("--num-classes", type=int, choices=(19, 16, 13), help="checked against the checkpoint")
    group.add_argument("--aspp-branches", type=int, choices=(2, 4), help="branches of each classifier that are added")
    group.add_argument("--heads", choices=("last", "sum"), help="which logits decide: the main classifier's, or the sum")
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", type=str.lower, choices=DATASETS, default="cityscapes", help="data set to evaluate on")
    group.add_argument("--city-name", metavar="CITY", help="CrossCity: Rome, Rio, Tokyo or Taipei")
    group.add_argument("--data-dir", metavar="DIR", help="its root in the official layout (default ./data/Cityscapes, ...)")
    group.add_argument("--data-list", metavar="FILE", help="list of its images; without one, all of the split")
    group.add_argument("--protocol", choices=PROTOCOLS, help="whose evaluation to follow (default: by the network, as above)")
    group.add_argument("--set", default="val", metavar="SPLIT", help="split to evaluate")
    group.add_argument("--input-size", type=size, metavar="W,H", help="images are resized to this (usually 1024,512)")
    parser.add_switch("--resize-labels", group=group, help="score at the input size, labels resized to it")
    parser.add_switch("--flip", help="average the scores of the image and its mirror image")
    parser.add_argument(
        "--scales", type=numbers, metavar="LIST", help="average over these input scales, for example 0.75,1,1.25"
    )
    parser.set_defaults(resize_labels=None, flip=None)
    parser.add_argument(
        "--save",
        "--checkpoint-dir",
        default="./result/cityscapes",
        metavar="DIR",
        help="where predictions go; `none` writes none",
    )
    parser.add_argument(
        "--save-label-ids", metavar="DIR", help="also write predictions as Cityscapes label ids, for its server"
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file")
    parser.add_argument("--csv", metavar="FILE", help="write one row per checkpoint to this file")
    parser.add_argument("--plot", metavar="FILE", help="of a folder of checkpoints: draw mIoU over steps to this PNG")
    add_speed_flags(parser, workers=4)
    parser.accept_without_effect("--is-training", "--image-summary")
    parser.accept_without_effect("--ignore-label", takes_value=True)
    args = parser.parse_args(arguments)
    args.data_dir = args.data_dir or DEFAULT_ROOTS[args.dataset]
    return args


def main(args):
    device = choose(args)
    checkpoints = find_checkpoints(args.restore_from)
    results = {}
    for path in checkpoints:
        stem = os.path.splitext(os.path.basename(path))[0]
        folder = args.save if len(checkpoints) == 1 else os.path.join(args.save, stem)
        if len(checkpoints) > 1:
            print(f"\n{stem}")
        matrix = evaluate_checkpoint(args, path, device, None if args.save == "none" else folder)
        if matrix is not None:
            results[stem] = scores(matrix)
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
        for path in glob(os.path.join(escape(source), "*.pth"))
        if not re.search(r"_D\d*\.pth$|state(\.previous)?\.pth$", path)
    ]
    if not paths:
        raise WeightsError(f"{source}: no checkpoints (*.pth) in this folder")
    return sorted(paths, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)])


def evaluate_checkpoint(args, path, device, folder):
    """Predict the split with one checkpoint, write the pictures, and return the confusion matrix (None without labels)."""
    model = load_model(path, args.model, aspp_branches=args.aspp_branches)
    num_classes = model.settings["num_classes"]
    if args.num_classes not in (None, num_classes):
        raise WeightsError(f"{path}: is for {num_classes} classes, not --num-classes {args.num_classes}")
    print(f"{model.settings['name']}, {num_classes} classes; {model.load_report}")
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
    return confusion.matrix if labelled else None


def protocol_of(args, model):
    """The parts of the protocol: --protocol, or the network's own, with what other flags change.

    Raises:
        ValueError: a flag that the protocol has no use for.
    """
    name = args.protocol or OF_NETWORK.get(model.settings["name"], "adaptsegnet")
    chosen = {"flip": False, "resize_labels": False, "input_size": (1024, 512), **PROTOCOLS[name]}
    given = {"input_size": args.input_size, "resize_labels": args.resize_labels, "flip": args.flip}
    chosen.update({key: value for key, value in given.items() if value is not None})
    options = {"flip": chosen["flip"]}
    if name == "cbst":
        if args.scales or args.heads:
            raise ValueError("--protocol cbst has neither --scales nor --heads")
        options["predict"] = predict_coarsely
    else:
        options["heads"] = args.heads or chosen.get("heads")
        options["scales"] = args.scales or chosen.get("scales", (1.0,))
        options["average"] = chosen.get("average", "probabilities")
    print(f"protocol {name}: input {chosen['input_size'] or 'as it is'}, flip {chosen['flip']}, "
          f"labels {'resized to the input' if chosen['resize_labels'] else 'at their own size'}")  # fmt: skip
    return {**chosen, "options": options}


def build_loader(args, num_classes, protocol):
    """The split's images one by one, and whether they come with labels."""

    def build(labels):
        transform = Resize(protocol["input_size"], label=protocol["resize_labels"]) if protocol["input_size"] else None
        return build_dataset(
            args.dataset, args.data_dir, args.set, args.data_list, num_classes, transform, labels, args.city_name
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
        save_ids(os.path.join(label_id_folder, f"{stem}.png"), to_label_ids(ids, num_classes))


def points_over_steps(results):
    """(step, mIoU in %) of the checkpoints whose names end in a number of steps."""
    steps = {stem: re.search(r"(\d+)$", stem) for stem in results}
    scored = {stem: found for stem, found in steps.items() if found and results[stem]["miou"] is not None}
    return [(int(found[1]), 100 * results[stem]["miou"]) for stem, found in scored.items()]


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
