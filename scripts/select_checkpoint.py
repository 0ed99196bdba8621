"""Choose a checkpoint without target labels: six criteria on what each checkpoint predicts on target images.

    python scripts/select_checkpoint.py snapshots/clan --target data/Cityscapes/leftImg8bit/train --json selection.json
    python scripts/select_checkpoint.py RUN RUN --target IMAGES                  # several runs: their checkpoints together
    python scripts/select_checkpoint.py RUN --target IMAGES --dataset cityscapes --data-dir data/Cityscapes --set val

The last form also scores every checkpoint on a labelled split, and says how much mIoU each criterion's choice loses against
the best one (its regret). That is a study of the criteria, not a way to choose: who has labels needs no criterion.

Each checkpoint sees each image once. Memory depends neither on the number of images nor on that of checkpoints; for EnsV
a temporary folder holds 4 C + K bytes for each pixel of the outputs (1/8 of the input) of K checkpoints with C classes.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset.catalogue import DATA_SETS, ClassSet
from dataset.loader import sequential_loader
from dataset.segmentation import SegmentationDataset, build_dataset
from dataset.transforms import Resize
from evaluate_cityscapes import find_checkpoints
from model import load_model
from model.segmenter import Segmenter
from scripts.predict import INPUT_SIZE, find_images, input_transform
from utils import flags, parser
from utils.device import autocast, choose, prepare
from utils.errors import RunError, exit_with_message
from utils.evaluation import classes_of_network, evaluate, main_logits
from utils.files import make_parent, write_json
from utils.flags import add_speed_flags
from utils.iou import mean_iou
from utils.outputs import check_file, is_json_with
from utils.parser import Flags, Parser, positive, seed
from utils.selection import CRITERIA, ENSEMBLE, Ensemble, PredictionStatistics, SampledPixels, choices, regrets, unique_names

Figures = dict[str, Any]


def get_arguments(arguments: list[str] | None = None) -> Flags:
    words = Parser(__doc__)
    words.add_argument("runs", nargs="+", metavar="RUN", help="folders of checkpoints, or checkpoints")
    words.add_argument("--target", required=True, metavar="IMAGES", help="a folder of target images, without labels")
    words.add_argument("--model", metavar="NAME", help="network, where the checkpoints alone cannot tell")
    words.add_argument("--input-size", type=parser.size, metavar="W,H", help=INPUT_SIZE)
    words.add_argument("--samples", type=positive, default=4096, metavar="N", help="pixels that SND compares, of all images")
    words.add_argument("--random-seed", type=seed, default=0, metavar="N", help="seeds the choice of these pixels")
    words.add_argument("--json", metavar="FILE", help="write all values to this file")
    group = words.add_argument_group("labels, to study the criteria")
    group.add_argument("--dataset", type=parser.data_set, choices=DATA_SETS, help="data set whose labels give the mIoU")
    group.add_argument("--data-dir", metavar="DIR", help="its root in the official layout (default ./data/Cityscapes, ...)")
    group.add_argument("--set", default="val", metavar="SPLIT", help="its split")
    flags.add_part_flags(group)
    add_speed_flags(words, workers=2)
    return Flags(**vars(words.parse_args(arguments)))


def main(args: Flags) -> Figures:
    check_file("--json", args.json, is_json_with("criteria", "choice"))
    paths = checkpoints_of(args.runs)
    classes = common_classes(paths, args.model)
    images = target_images(args, classes)
    labelled = labelled_images(args, classes)
    print(f"{len(paths)} checkpoints, {len(images)} target images, {len(classes)} classes")
    with tempfile.TemporaryDirectory(prefix="select_checkpoint_") as folder:
        figures = score(args, dict(zip(unique_names(paths), paths, strict=True)), classes, images, labelled, folder)
    print(report(figures))
    if args.json:
        make_parent(args.json)
        write_json(args.json, figures)
    return figures


def checkpoints_of(runs: list[str]) -> list[str]:
    """The checkpoints of all runs in order; those called `best` are left out, for target labels have chosen them.

    Raises:
        WeightsError: a folder without checkpoints.
        RunError: there are not two to choose from.
    """
    paths = [path for run in runs for path in find_checkpoints(run)]
    chosen = [path for path in paths if not os.path.splitext(path)[0].endswith("best")]
    for path in paths:
        if path not in chosen:
            print(f"note: {path} is left out: labels have chosen it")
    if len(chosen) < 2:
        raise RunError(
            f"{' '.join(runs)}: {len(chosen)} checkpoint, so there is nothing to choose; "
            "train with --save-pred-every N to keep more"
        )
    return chosen


def common_classes(paths: list[str], name: str | None) -> ClassSet:
    """The classes that all checkpoints share.

    Raises:
        RunError: two have different ones.
    """
    first = classes_of_network(load_model(paths[0], name))
    for path in paths[1:]:
        found = classes_of_network(load_model(path, name))
        if found.names != first.names:
            reason = f"has {len(found)} classes, {paths[0]} {len(first)}"
            if len(found) == len(first):
                reason = f"has other classes than {paths[0]}"
            raise RunError(f"{path}: {reason}; only checkpoints of the same classes can be compared")
    return first


def target_images(args: Flags, classes: ClassSet) -> DataLoader:
    """The target images at the network's input size, one by one."""
    transform = input_transform(args.input_size, classes)
    return sequential_loader(SegmentationDataset(find_images([args.target]), None, transform, labels=False), args.num_workers)


def labelled_images(args: Flags, classes: ClassSet) -> DataLoader | None:
    """The labelled split of --dataset at the same input size, labels at their own; None without --dataset.

    Raises:
        MissingDataError: it has no labels.
    """
    if args.dataset is None:
        return None
    root = args.data_dir or flags.usual_root("--dataset", args.dataset, "--data-dir")
    size = input_transform(args.input_size, classes)
    transform = Resize((size.size[1], size.size[0]), label=False) if isinstance(size, Resize) else size
    part = flags.part(args, args.dataset)
    return sequential_loader(build_dataset(args.dataset, root, args.set, None, classes, transform, part=part), args.num_workers)


def score(
    args: Flags, paths: dict[str, str], classes: ClassSet, images: DataLoader, labelled: DataLoader | None, folder: str
) -> Figures:
    """All criteria's values and choices, and with labels the mIoU and the regrets."""
    device = choose(args)
    ensemble, sampled = Ensemble(folder, len(classes)), SampledPixels(len(images), args.samples, args.random_seed)
    criteria: dict[str, dict[str, float]] = {ENSEMBLE: {}, **{name: {} for name in CRITERIA}}
    miou = {}
    for name, path in paths.items():
        model = prepare(load_model(path, args.model), args, device)
        statistics = PredictionStatistics(len(classes), sampled, device)
        for image, probability in enumerate(tqdm(probabilities(args, model, images, device), name, len(images), unit="image")):
            statistics.add(image, probability)
            add_to_ensemble(ensemble, image, probability, path)
        for criterion, (value, _) in CRITERIA.items():
            criteria[criterion][name] = value(statistics)
        if labelled is not None:
            confusion = evaluate(model, labelled, len(classes), device, autocast=lambda: autocast(args, device))
            miou[name] = mean_iou(confusion.matrix.cpu())
    criteria[ENSEMBLE] = dict(zip(paths, ensemble.agreement(len(images), len(paths)), strict=True))
    choice = choices(criteria)
    figures: Figures = {"criteria": criteria, "choice": choice}
    return {**figures, "miou": miou, "regret": regrets(choice, miou)} if miou else figures


@torch.inference_mode()
def probabilities(args: Flags, model: Segmenter, images: DataLoader, device: torch.device) -> Iterator[torch.Tensor]:
    """For each image the probabilities (C,h,w) at the size of the network's output."""
    for batch in images:
        with autocast(args, device):
            logits = main_logits(model, batch["image"].to(device, non_blocking=True))
        yield logits.softmax(1)[0]


def add_to_ensemble(ensemble: Ensemble, image: int, probability: torch.Tensor, path: str) -> None:
    """As `Ensemble.add`.

    Raises:
        RunError: the checkpoint's network gives outputs of another size than those before.
    """
    try:
        ensemble.add(image, probability)
    except ValueError as error:
        raise RunError(f"{path}: {error}; give checkpoints of networks with the same output size") from error


def report(figures: Figures) -> str:
    """The values of each checkpoint, and what each criterion chooses."""
    criteria, choice, miou = figures["criteria"], figures["choice"], figures.get("miou", {})
    columns = {title: {name: f"{value:.4f}" for name, value in values.items()} for title, values in criteria.items()}
    for title, name in choice.items():
        columns[title][name] = f"*{columns[title][name]}"
    if miou:
        columns["mIoU in %"] = {name: f"{100 * value:.2f}" for name, value in miou.items()}
    names = list(criteria[ENSEMBLE])
    width = max(map(len, names))
    lines = [" " * width + "".join(f"  {title:>8s}" for title in columns)]
    for name in names:
        cells = (f"  {cells[name]:>{max(8, len(title))}s}" for title, cells in columns.items())
        lines.append(f"{name:{width}s}{''.join(cells)}")
    lines += ["", "chosen without labels (*):"]
    lines += [f"  {title:26s}{name}{lost(name, miou)}" for title, name in choice.items()]
    if miou:
        best = max(miou, key=miou.__getitem__)
        lines += [
            f"  {'(last one)':26s}{names[-1]}{lost(names[-1], miou)}",
            f"  {'(best, by labels)':26s}{best}{lost(best, miou)}",
        ]
    return "\n".join(lines)


def lost(name: str, miou: dict[str, float]) -> str:
    """A checkpoint's mIoU and regret in words; nothing without labels."""
    return f": mIoU {100 * miou[name]:.2f}, regret {100 * (max(miou.values()) - miou[name]):.2f}" if miou else ""


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
