"""The flags that all training scripts share."""

import argparse
import os

from dataset.catalogue import DATA_SETS
from model import BATCH_NORM_MODES, MODELS

from .parser import HelpFormatter, Parser, data_set, numbers, positive, size, truth

__all__ = ["HelpFormatter", "Parser", "data_set", "numbers", "positive", "size", "truth"]

DATASETS = tuple(DATA_SETS)
DEFAULT_ROOTS = {name: known.root for name, known in DATA_SETS.items()}
# MaxSquare's: dead there, or the way things always are here.
WITHOUT_EFFECT = ("--imagenet-pretrained", "--pin-memory", "--bn-momentum", "--base-size", "--target-base-size", "--resize",
                  "--numpy-transform")  # fmt: skip
DEFAULT_SIZES = {name: known.train_size for name, known in DATA_SETS.items()}


def add_source_flags(parser, default="gta5", aliases=()):
    group = parser.add_argument_group("source domain (labelled)")
    group.add_argument(
        "--source",
        "--source-dataset",
        *aliases,
        type=data_set,
        choices=DATASETS,
        default=default,
        help="data set to learn from",
    )
    group.add_argument(
        "--data-dir",
        "--data-dir-source",
        metavar="DIR",
        help="its root in the official layout (default ./data/GTA5, ./data/SYNTHIA, ...)",
    )
    group.add_argument(
        "--data-list", metavar="FILE", help="list of its images in any of the originals' formats; without one, all images found"
    )
    group.add_argument(
        "--source-split",
        "--split",
        default="all",
        metavar="SPLIT",
        help="GTA5: all, train, val (by the official split.mat); SYNTHIA: all, train, val; Cityscapes: "
        "train (which `all` means there), val; CrossCity: test, the only labelled one",
    )
    group.add_argument(
        "--input-size",
        "--input-size-source",
        "--crop-size",
        type=size,
        metavar="W,H",
        help="source images are resized to this (default 1280,720 for GTA5, 1280,760 for SYNTHIA, 1024,512 for the others)",
    )
    group.add_argument("--city-name", metavar="CITY", help="CrossCity: Rome, Rio, Tokyo or Taipei")


def add_label_flags(parser):
    """For scripts that count something on a data set's labels; complete them with `set_label_defaults`."""
    parser.add_argument("--source", type=data_set, choices=DATASETS, help="data set (default gta5, or synthia by its folders)")
    parser.add_argument("--data-dir", "-d", metavar="DIR", help="its root in the official layout (default ./data/GTA5, ...)")
    parser.add_argument("--data-list", metavar="FILE", help="list of its images; without one, all images found")
    parser.add_argument("--source-split", "--split", default="all", metavar="SPLIT", help="split to look at")
    parser.add_argument("--city-name", metavar="CITY", help="CrossCity: Rome, Rio, Tokyo or Taipei")
    parser.add_argument("--num-classes", type=int, choices=(19, 16, 13), help="default 19, for SYNTHIA 16")
    parser.add_argument("--workers", type=positive, default=os.cpu_count(), help="processes that read labels")


def set_label_defaults(args):
    """Fill in the data set by the folders of its root, and the root and the number of classes by the data set."""
    has_synthia = any(os.path.isdir(os.path.join(args.data_dir or "", folder)) for folder in ("RAND_CITYSCAPES", "RGB"))
    args.source = args.source or ("synthia" if args.data_dir and has_synthia else "gta5")
    args.data_dir = args.data_dir or DEFAULT_ROOTS[args.source]
    args.num_classes = args.num_classes or (16 if args.source == "synthia" else 19)
    return args


def add_target_flags(parser, aliases=()):
    group = parser.add_argument_group("target domain (its labels are read for validation only)")
    group.add_argument("--target", *aliases, type=data_set, choices=DATASETS, default="cityscapes", help="data set to adapt to")
    group.add_argument("--data-dir-target", metavar="DIR", help="its root in the official layout (default ./data/Cityscapes)")
    group.add_argument("--data-list-target", metavar="FILE", help="list of its images; without one, all images found")
    group.add_argument("--set", default="train", metavar="SPLIT", help="split of the target to adapt on")
    group.add_argument(
        "--input-size-target",
        "--target-crop-size",
        type=size,
        metavar="W,H",
        help="target images are resized to this (default 1024,512)",
    )


def add_network_flags(parser, model):
    group = parser.add_argument_group("network")
    group.add_argument("--model", "--backbone", default=model, metavar="NAME", help=f"one of {', '.join(MODELS)}")
    group.add_argument(
        "--num-classes", type=int, choices=(19, 16, 13), default=19, help="19 (Cityscapes), 16 (SYNTHIA), 13 (CrossCity)"
    )
    group.add_argument(
        "--aspp-branches",
        type=int,
        choices=(2, 4),
        help="branches of each classifier that are added; must be what the weights were trained with "
        "(default: the network's own, 2 for AdaptSegNet and MaxSquare, 4 for CLAN and CRST)",
    )
    group.add_argument(
        "--batch-norm",
        choices=BATCH_NORM_MODES,
        default="frozen-affine",
        help="train: batch statistics, scale and shift trained; frozen-affine: batch statistics, scale and "
        "shift fixed; frozen-statistics: stored statistics, scale and shift trained; frozen: all fixed",
    )
    group.add_argument(
        "--restore-from",
        "--pretrained-ckpt-file",
        metavar="FILE",
        help="weights to start from: a file or URL; `none` starts from random weights (default: the "
        "ImageNet/COCO initialisation file, looked for in ./model and ./pretrained_model)",
    )


def add_optimization_flags(
    parser,
    num_steps,
    num_steps_stop,
    save_pred_every,
    run_aliases=("--save-dir", "--checkpoint-dir"),
    batch_help="images per process and domain",
):
    group = parser.add_argument_group("optimization")
    group.add_argument(
        "--learning-rate", "--lr", type=float, default=2.5e-4, help="of the trunk; the classifiers have 10 times that"
    )
    group.add_argument("--momentum", type=float, default=0.9, help="of SGD")
    group.add_argument("--weight-decay", type=float, default=5e-4, help="of SGD")
    group.add_argument("--power", "--poly-power", type=float, default=0.9, help="of the poly schedule")
    group.add_argument("--num-steps", "--iter-max", type=positive, default=num_steps, help="where the poly schedule reaches 0")
    group.add_argument("--num-steps-stop", "--iter-stop", type=positive, default=num_steps_stop, help="where training stops")
    group.add_argument(
        "--updates",
        choices=("published", "clean"),
        default="published",
        help="published: most trunk parameters are updated 3 or 4 times a step, as PyTorch 1.0 did with "
        "the originals' parameter lists; clean: each once, as the papers read",
    )
    group.add_argument("--batch-size", "--batch-size-per-gpu", type=positive, default=1, help=batch_help)
    group.add_argument("--random-seed", "--seed", type=int, default=1234, help="seeds weights, data order and augmentation")
    add_speed_flags(parser, workers=4)
    group = parser.add_argument_group("run directory")
    group.add_argument(
        "--snapshot-dir",
        *run_aliases,
        default="./snapshots/",
        metavar="DIR",
        help="run directory: snapshots, metrics.jsonl, TensorBoard, state",
    )
    group.add_argument("--save-pred-every", type=positive, default=save_pred_every, metavar="N", help="steps between snapshots")
    group.add_argument(
        "--save-state-every",
        type=positive,
        default=1000,
        metavar="N",
        help="steps between saves of the state that --resume needs",
    )
    parser.add_switch("--resume", group=group, help="continue the run in --snapshot-dir exactly where it stopped")
    group.add_argument(
        "--log-every", type=positive, default=10, metavar="N", help="steps between lines in metrics.jsonl and TensorBoard"
    )
    group.add_argument(
        "--val-every",
        type=int,
        default=0,
        metavar="N",
        help="steps between validations (0: never); the best and the last snapshot are kept apart",
    )
    group.add_argument(
        "--save-num-images", "--show-num-images", type=int, default=2, metavar="N", help="images in TensorBoard's pictures"
    )


def add_speed_flags(parser, workers=None):
    group = parser.add_argument_group("device and speed")
    group.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N")
    group.add_argument("--gpu", metavar="N", help="number of the GPU, the same as --device cuda:N")
    group.add_argument(
        "--cpu", dest="device", action="store_const", const="cpu", default=argparse.SUPPRESS, help="the same as --device cpu"
    )
    if workers is not None:
        group.add_argument(
            "--num-workers",
            "--data-loader-workers",
            type=int,
            default=workers,
            help="processes that read images, per domain; 0 reads in the main process",
        )
    group.add_argument(
        "--amp",
        choices=("off", "bf16", "fp16"),
        default="off",
        help="mixed precision; bf16 on recent cards, fp16 (with loss scaling) on older ones",
    )
    parser.add_switch("--compile", group=group, help="torch.compile the network: minutes at the start, faster steps")
    parser.add_switch(
        "--channels-last", group=group, help="channels-last memory layout: faster with --amp on GPUs, and on CPUs"
    )


def set_source_defaults(args):
    """Fill in the root and size that depend on the source data set."""
    args.data_dir = args.data_dir or DEFAULT_ROOTS[args.source]
    args.input_size = args.input_size or DEFAULT_SIZES[args.source]
    return args


def set_target_defaults(args):
    """Fill in the root and size that depend on the target data set."""
    args.data_dir_target = args.data_dir_target or DEFAULT_ROOTS[args.target]
    args.input_size_target = args.input_size_target or DEFAULT_SIZES[args.target]
    return args
