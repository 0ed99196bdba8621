"""The command line: a parser that forgives spelling, and the flags that all training scripts share."""

import argparse
import difflib
import os

from model import BATCH_NORM_MODES, MODELS

DATASETS = ("gta5", "synthia", "cityscapes", "crosscity")
DEFAULT_ROOTS = {
    "gta5": "./data/GTA5",
    "synthia": "./data/SYNTHIA",
    "cityscapes": "./data/Cityscapes",
    "crosscity": "./data/NTHU_Datasets",
}
# MaxSquare's: dead there, or the way things always are here.
WITHOUT_EFFECT = ("--imagenet-pretrained", "--pin-memory", "--bn-momentum", "--base-size", "--target-base-size", "--resize",
                  "--numpy-transform")  # fmt: skip
DEFAULT_SIZES = {"gta5": (1280, 720), "synthia": (1280, 760), "cityscapes": (1024, 512), "crosscity": (1024, 512)}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The script's docstring as it is, and every flag's default behind its help."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.default == "":
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse with the originals' habits: `--lambda_target` is `--lambda-target`, `--IW_ratio` is `--iw-ratio`, a switch
    may carry a value (`--multi True`), and an unknown flag is answered with the nearest known one."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False)
        self.without_effect = {}

    def add_switch(self, *names, help, group=None, default=False):
        """Add a flag that is on or off; `--flag`, `--flag True` and `--flag False` all work."""
        (group or self).add_argument(*names, nargs="?", const=True, default=default, type=truth, metavar="BOOL", help=help)

    def also(self, name, *aliases):
        """Let a flag that is declared already be called by other names too."""
        action = self._option_string_actions[name]
        action.option_strings = [*action.option_strings, *aliases]
        self._option_string_actions.update(dict.fromkeys(aliases, action))

    def describe(self, **help):
        """Say what shared flags mean in this script, where that is something else."""
        for name, text in help.items():
            self._option_string_actions["--" + name.replace("_", "-")].help = text

    def accept_without_effect(self, *names, takes_value=False):
        """Accept flags of an original that do nothing here, so that old command lines work; parsing says so."""
        for name in names:
            self.without_effect[name] = takes_value
            self.add_argument(
                name,
                nargs=None if takes_value else "?",
                const=None if takes_value else True,
                default=argparse.SUPPRESS,
                help="accepted; no effect here",
            )

    def error(self, message):
        """Exit with status 2 and one line; the usage would be forty."""
        self.exit(2, f"{self.prog}: error: {message} (--help lists all flags)\n")

    def parse_args(self, args=None, namespace=None):
        parsed = super().parse_args(args, namespace)
        for name in self.without_effect:
            destination = name.lstrip("-").replace("-", "_")
            if hasattr(parsed, destination):
                print(f"note: {name} has no effect here")
                delattr(parsed, destination)
        return parsed

    def parse_known_args(self, args=None, namespace=None):
        if args is None:
            import sys

            args = sys.argv[1:]
        known = {_plain(option): option for option in self._option_string_actions}
        parsed, unknown = super().parse_known_args([_respell(word, known) for word in args], namespace)
        flags = [word.split("=")[0] for word in unknown if word.startswith("--")]
        if flags:
            near = difflib.get_close_matches(_plain(flags[0]), known, n=1)
            self.error(f"unknown flag {flags[0]}" + (f"; did you mean {known[near[0]]}?" if near else ""))
        return parsed, unknown


def _plain(option):
    return option.lower().replace("_", "-")


def _respell(word, known):
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return known.get(_plain(flag), flag) + equals + value


def data_set(word):
    """The name of a data set in lower case; `gta` is `gta5`."""
    return {"gta": "gta5"}.get(word.lower(), word.lower())


def truth(word):
    """`True`, `yes`, `1`, ... to a bool."""
    if word.lower() in ("true", "yes", "1", "on"):
        return True
    if word.lower() in ("false", "no", "0", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")


def size(word):
    """`1280,720` to (1280, 720), width first; `500` is a square."""
    try:
        width, height = (int(part) for part in (word.split(",") if "," in word else (word, word)))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not a size; write WIDTH,HEIGHT, for example 1280,720") from None
    if width < 1 or height < 1:
        raise argparse.ArgumentTypeError(f"{word!r}: both sides must be positive")
    return width, height


def numbers(word):
    """`0.5,1.0` to (0.5, 1.0)."""
    try:
        return tuple(float(part) for part in word.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not a list of numbers such as 0.5,1.0") from None


def positive(word):
    """A whole number of at least 1."""
    value = int(word)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{word} is not at least 1")
    return value


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
    in_epochs=False,
):
    """With `in_epochs` a run's length is counted in epochs by the script's own flags, and the two for steps are left out."""
    group = parser.add_argument_group("optimization")
    group.add_argument(
        "--learning-rate", "--lr", type=float, default=2.5e-4, help="of the trunk; the classifiers have 10 times that"
    )
    group.add_argument("--momentum", type=float, default=0.9, help="of SGD")
    group.add_argument("--weight-decay", type=float, default=5e-4, help="of SGD")
    group.add_argument("--power", "--poly-power", type=float, default=0.9, help="of the poly schedule")
    if not in_epochs:
        where = "where the poly schedule reaches 0"
        group.add_argument("--num-steps", "--iter-max", type=positive, default=num_steps, help=where)
        where = "where training stops"
        group.add_argument("--num-steps-stop", "--iter-stop", type=positive, default=num_steps_stop, help=where)
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


def with_values(args: argparse.Namespace, **values: object) -> argparse.Namespace:
    """A copy of `args` with other values: the settings of a stage or a round."""
    return argparse.Namespace(**{**vars(args), **values})
