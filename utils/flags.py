"""The flags that scripts share, in groups, and the values that flags have when they are not given."""

import os
from argparse import SUPPRESS, Action, Namespace
from typing import Any

from dataset.catalogue import CLASS_SETS, DATA_SETS, ClassSet, class_set, data_set, fitted_size
from dataset.layouts import find_records
from dataset.reading import image_size
from model import BATCH_NORM_MODES, MODELS

from . import parser as values
from .distributed import USUAL_TIMEOUT
from .errors import RunError
from .parser import Flags, Parser, not_negative, positive

# The field's usual classes, which a data set without classes of its own is trained on.
USUAL_CLASSES = 19

# Help that takes more than a line.
ASPP_BRANCHES = (
    "branches of each classifier that are added; as in the weights (default: the network's own, 2 for AdaptSegNet and "
    "MaxSquare, 4 for CLAN, FADA and CRST)"
)
BATCH_NORM = (
    "train: batch statistics, scale and shift trained; frozen-affine: batch statistics, scale and shift fixed; "
    "frozen-statistics: stored statistics, scale and shift trained; frozen: all fixed"
)
RESTORE_FROM = (
    "weights to start from: a file, a URL, torchvision:NAME or timm:NAME; `none` starts from random weights (default: the "
    "ImageNet/COCO initialisation file, in ./model or ./pretrained_model)"
)
FRESH_CLASSIFIER = "accept weights whose classifier is for other classes or layers: ours starts from random values"
UPDATES = (
    "published: most trunk parameters are updated 3 or 4 times a step, as PyTorch 1.0 did with the originals' lists of "
    "parameters; clean: each once"
)
PROTOCOL = "whose settings, where no flag says otherwise: the authors', or those of their reproduction in PaddlePaddle"
RESUME = "continue the run in --snapshot-dir exactly where it stopped; auto: if there is one, else start it"
TIMEOUT = "end the process, with status 124, when it has made no progress for so long; 0: never"
CONFIG = "run the run again whose args.json this is; flags given besides win, and its --snapshot-dir is best one of them"
WANDB = "also send metrics and pictures to this project of Weights & Biases (needs the package wandb)"
ON_BAD_SAMPLE = "skip: train on the next image in place of one that cannot be read; ends above 1 %% of the samples"
DROP_PATH = "stochastic depth: chance that the last block is left out of a step; those before it less (default 0)"
LAYER_DECAY = "learning rate of each block as a multiple of the next one's (default 1)"
CHECKPOINT_ACTIVATIONS = "compute blocks again in the backward pass instead of keeping what they made: less memory, slower"
OPTIM = "Adam and AdamW: each parameter once a step, betas (0.9, 0.99) and (0.9, 0.999)"
CLIP_GRAD = "largest norm of the network's gradient; a longer one is scaled down to it (default: none)"
AMP = "mixed precision: bf16 on recent cards, fp16 (with loss scaling) on older ones"
ESTIMATE = (
    "tell memory and speed of these flags on several GPUs, and end; needs no GPU, no data and no weights, but a C compiler"
)
FAST = "the same as --amp bf16 --channels-last --compile; what stands behind it on the command line is still heeded"


def _roots() -> str:
    return ", ".join(record.root for record in list(DATA_SETS.values())[:2])


def _sizes(default: tuple[int, int]) -> str:
    other = [
        f"{record.title} {record.train_size[0]},{record.train_size[1]}"
        for record in DATA_SETS.values()
        if record.train_size not in (None, default)
    ]
    return ", ".join([f"default {default[0]},{default[1]}", *other, "folder: by the first image, at most 1024"])


def add_source_flags(parser: Parser, default: str = "gta5") -> None:
    group = parser.add_argument_group("source domain (labelled)")
    group.add_argument("--source", type=values.data_set, choices=DATA_SETS, default=default, help="data set to learn from")
    group.add_argument("--data-dir", metavar="DIR", help=f"its root in the official layout (default {_roots()}, ...)")
    group.add_argument("--data-list", metavar="FILE", help="list of its images, in any original's format (default: all found)")
    group.add_argument("--source-split", default="all", metavar="SPLIT", help="all, train, val, ... (docs/data.md)")
    group.add_argument(
        "--input-size", type=values.size, metavar="W,H", help=f"images are resized to this ({_sizes((1024, 512))})"
    )
    add_part_flags(group)


def add_part_flags(group: Any) -> None:
    """The flags that choose a place or condition of a data set that is divided into such."""
    for flag in dict.fromkeys(record.part_flag for record in DATA_SETS.values() if record.part_flag):
        records = [record for record in DATA_SETS.values() if record.part_flag == flag]
        parts = "; ".join(f"{record.title}: {', '.join(record.parts)}" for record in records)
        group.add_argument(flag, metavar=flag.strip("-").split("-")[0].upper(), help=parts)


def add_target_flags(parser: Parser, default: str | None = "cityscapes") -> None:
    group = parser.add_argument_group("target domain (its labels are read for validation only)")
    group.add_argument("--target", type=values.data_set, choices=DATA_SETS, default=default, help="data set to adapt to")
    group.add_argument(
        "--data-dir-target", metavar="DIR", help="its root in the official layout (default ./data/Cityscapes, ...)"
    )
    group.add_argument("--data-list-target", metavar="FILE", help="list of its images (default: all found)")
    group.add_argument("--set", default="train", metavar="SPLIT", help="split of the target to adapt to")
    group.add_argument(
        "--input-size-target", type=values.size, metavar="W,H", help="images are resized to this (default 1024,512)"
    )


def add_network_flags(parser: Parser, model: str) -> None:
    group = parser.add_argument_group("network")
    group.add_argument(
        "--model",
        default=model,
        metavar="NAME",
        help=f"one of {', '.join(MODELS)}; or torchvision:NAME, timm:NAME (docs/backbones.md)",
    )
    group.add_argument(
        "--num-classes", type=positive, metavar="N", help=f"{_class_counts()}; classes.json of a folder has its own"
    )
    group.add_argument("--aspp-branches", type=int, choices=(2, 4), help=ASPP_BRANCHES)
    group.add_argument("--batch-norm", choices=BATCH_NORM_MODES, default="frozen-affine", help=BATCH_NORM)
    group.add_argument("--restore-from", metavar="FILE", help=RESTORE_FROM)
    add_encoder_flags(parser)


def add_encoder_flags(parser: Parser) -> None:
    group = parser.add_argument_group("encoders of torchvision and timm")
    group.add_argument("--drop-path", type=values.fraction, metavar="P", help=DROP_PATH)
    group.add_argument("--layer-decay", type=values.share, metavar="X", help=LAYER_DECAY)
    parser.add_switch("--checkpoint-activations", group=group, help=CHECKPOINT_ACTIVATIONS)
    parser.add_switch("--freeze-encoder", group=group, help="train the classifiers alone, a linear probe")


def _class_counts() -> str:
    counts = [f"{count}{' (default)' if count == USUAL_CLASSES else ''}" for count in CLASS_SETS]
    return f"classes: {', '.join(counts[:-1])} or {counts[-1]}"


def add_optimization_flags(
    parser: Parser,
    num_steps: int | None,
    num_steps_stop: int | None,
    save_pred_every: int,
    batch_help: str = "images per process and domain",
) -> None:
    """Optimizer, length of the training, speed and run directory, for scripts that count in steps."""
    group = add_optimizer_flags(parser, batch_help)
    stop = f"where training stops (default {num_steps_stop or 'the same'}, at most --num-steps)"
    group.add_argument("--num-steps", type=positive, default=num_steps, metavar="N", help="where the poly schedule reaches 0")
    group.add_argument("--num-steps-stop", type=positive, metavar="N", help=stop)
    add_speed_flags(parser, workers=4)
    group = add_run_flags(parser)
    group.add_argument("--save-pred-every", type=positive, default=save_pred_every, metavar="N", help="steps between snapshots")


def add_optimizer_flags(parser: Parser, batch_help: str) -> Any:
    """Returns their group in the help."""
    group = parser.add_argument_group("optimization")
    group.add_argument(
        "--learning-rate", type=not_negative, default=2.5e-4, help="of the trunk; classifiers have 10 times that"
    )
    group.add_argument("--optim", choices=("SGD", "Adam", "AdamW"), default="SGD", help=OPTIM)
    group.add_argument("--warmup", type=values.count, default=0, metavar="N", help="steps over which the rate rises from 0")
    group.add_argument("--clip-grad", type=values.above_zero, metavar="NORM", help=CLIP_GRAD)
    group.add_argument("--momentum", type=not_negative, default=0.9, help="of SGD")
    group.add_argument("--weight-decay", type=not_negative, default=5e-4, help="of the segmentation network")
    group.add_argument("--power", type=not_negative, default=0.9, help="of the poly schedule")
    group.add_argument("--updates", choices=("published", "clean"), default="published", help=UPDATES)
    group.add_argument("--batch-size", type=positive, default=1, metavar="N", help=batch_help)
    group.add_argument(
        "--random-seed", type=values.seed, default=1234, metavar="N", help="seeds weights, data order and augmentation"
    )
    return group


def add_run_flags(parser: Parser) -> Any:
    """Returns their group in the help."""
    group = parser.add_argument_group("run directory")
    group.add_argument(
        "--snapshot-dir", default="./snapshots/", metavar="DIR", help="for snapshots, metrics, TensorBoard, state"
    )
    group.add_argument("--config", metavar="FILE", default=SUPPRESS, help=CONFIG)
    group.add_argument("--save-state-every", type=positive, default=1000, metavar="N", help="steps between saves for --resume")
    group.add_argument("--resume", nargs="?", const=True, default=False, type=values.resume, metavar="auto", help=RESUME)
    group.add_argument("--log-every", type=positive, default=10, metavar="N", help="steps between lines of metrics.jsonl")
    group.add_argument(
        "--val-every", type=values.count, default=0, metavar="N", help="steps between validations, which keep the best; 0: none"
    )
    parser.add_switch("--estimate", group=group, help=ESTIMATE)
    group.add_argument("--save-num-images", type=values.count, default=2, metavar="N", help="images in TensorBoard's pictures")
    group.add_argument("--wandb", type=values.wandb_project, metavar="PROJECT", help=WANDB)
    group.add_argument("--timeout", type=not_negative, default=USUAL_TIMEOUT, metavar="SECONDS", help=TIMEOUT)
    group.add_argument("--on-bad-sample", choices=("error", "skip"), default="error", help=ON_BAD_SAMPLE)
    return group


def add_speed_flags(parser: Parser, workers: int | None = None) -> None:
    group = parser.add_argument_group("device and speed")
    group.add_argument("--device", type=values.device, default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N")
    group.add_argument("--gpu", type=values.count, metavar="N", help="number of the GPU, the same as --device cuda:N")
    group.add_argument(
        "--cpu", dest="device", action="store_const", const="cpu", default="auto", help="the same as --device cpu"
    )
    if workers is not None:
        group.add_argument("--num-workers", type=values.count, default=workers, metavar="N", help="that read images; 0: none")
    group.add_argument(
        "--fast", action=_Fast, nargs="?", const=True, default=SUPPRESS, type=values.truth, metavar="BOOL", help=FAST
    )
    group.add_argument("--amp", choices=("off", "bf16", "fp16"), default="off", help=AMP)
    parser.add_switch("--compile", group=group, help="torch.compile the network: minutes at the start, faster steps")
    parser.add_switch("--channels-last", group=group, help="memory layout: faster with --amp on GPUs, and on CPUs")


class _Fast(Action):
    """Sets the three flags that --fast stands for, so that nothing else has to know of it."""

    def __call__(self, parser: Any, namespace: Namespace, value: Any, option: str | None = None) -> None:
        if value:
            namespace.amp, namespace.channels_last, namespace.compile = "bf16", True, True


def add_label_flags(parser: Parser) -> None:
    """For scripts that count something on a data set's labels; complete them with `complete_label_flags`."""
    parser.add_argument(
        "--source", type=values.data_set, choices=DATA_SETS, help="data set (default: told by the root's folders)"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="its root in the official layout (default ./data/GTA5, ...)")
    parser.add_argument("--data-list", metavar="FILE", help="list of its images (default: all found)")
    parser.add_argument("--source-split", default="all", metavar="SPLIT", help="split to look at")
    add_part_flags(parser)
    parser.add_argument(
        "--num-classes", type=positive, metavar="N", help="19, 16 or 13 (default: what is usual for the data set)"
    )
    parser.add_argument("--workers", type=positive, default=os.cpu_count(), metavar="N", help="processes that read labels")


def complete_label_flags(args: Namespace) -> Flags:
    """The data set by the folders of its root, and the root and the number of classes by the data set."""
    root = args.data_dir or ""
    source = args.source or ("folder" if os.path.exists(os.path.join(root, "classes.json")) else None)
    has_synthia = any(os.path.isdir(os.path.join(root, folder)) for folder in ("RAND_CITYSCAPES", "RGB"))
    source = source or ("synthia" if args.data_dir and has_synthia else "gta5")
    record = data_set(source, args.data_dir or DATA_SETS[source].root)
    num_classes = _num_classes(record, args.num_classes or record.num_classes)
    return Flags(**vars(args)).with_values(source=source, data_dir=args.data_dir or record.root, num_classes=num_classes)


def with_defaults(args: Namespace, **values: Any) -> Flags:
    """The flags with these values where none are given."""
    return Flags(**vars(args)).with_values(**{name: value for name, value in values.items() if getattr(args, name) is None})


def complete(args: Namespace, usual_stop: int | None = None) -> Flags:
    """Fill in what depends on the data sets (roots, sizes, number of classes) and on other flags, and freeze it all.

    Args:
        usual_stop: the published --num-steps-stop.

    Raises:
        DataError: a data set is needed for a default and is not there, or its classes.json is wrong.
        RunError: flags that do not go together.
    """
    flags = Flags(**vars(args))
    if hasattr(args, "source"):
        root = args.data_dir or usual_root("--source", args.source, "--data-dir")
        record = data_set(args.source, root)
        size = (
            args.input_size
            or record.train_size
            or _first_image(args.source, root, args.source_split, args.data_list, part(args, args.source))
        )
        flags = flags.with_values(data_dir=root, input_size=size)
        if hasattr(args, "num_classes"):
            flags = flags.with_values(num_classes=_num_classes(record, args.num_classes))
    if hasattr(args, "target"):
        root = args.data_dir_target or usual_root("--target", args.target, "--data-dir-target")
        size = args.input_size_target or DATA_SETS[args.target].train_size
        size = size or _first_image(args.target, root, args.set, args.data_list_target, part(args, args.target))
        flags = flags.with_values(data_dir_target=root, input_size_target=size)
    if getattr(args, "num_steps", None):
        stop = args.num_steps_stop or min(usual_stop or args.num_steps, args.num_steps)
        if stop > args.num_steps:
            raise RunError(f"--num-steps-stop {stop} is beyond --num-steps {args.num_steps}, where the learning rate is 0")
        flags = flags.with_values(num_steps_stop=stop)
    return flags


def part(args: Namespace, name: str) -> str | None:
    """The place or condition that the flags choose of data set `name`, None for the usual ones."""
    flag = DATA_SETS[name].part_flag
    return getattr(args, flag.strip("-").replace("-", "_")) if flag else None


def classes_of(args: Namespace) -> ClassSet:
    """The classes that a script trains: those of the source, which names its own or is trained on a published set."""
    return data_set(args.source, args.data_dir).classes or class_set(args.num_classes)


def usual_root(flag: str, name: str, root_flag: str) -> str:
    """Where data set `name` is looked for without a flag.

    Raises:
        RunError: it has no usual place.
    """
    if not DATA_SETS[name].root:
        raise RunError(f"{flag} {name} needs its root: name it with {root_flag} DIR")
    return DATA_SETS[name].root


def _num_classes(record: Any, given: int | None) -> int:
    if record.classes is not None:
        if given not in (None, len(record.classes)):
            raise RunError(
                f"--num-classes {given}: the classes.json of the source has {len(record.classes)} classes; leave the flag out"
            )
        return len(record.classes)
    if given is not None and given not in CLASS_SETS:
        raise RunError(
            f"--num-classes {given}: {_class_counts()}; classes of your own stand in the classes.json of --source folder"
        )
    return given or USUAL_CLASSES


def _first_image(name: str, root: str, split: str, list_file: str | None, place: str | None) -> tuple[int, int]:
    first = find_records(name, root, split, list_file, place)[0]
    return fitted_size(image_size(first.image))
