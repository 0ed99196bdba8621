"""Look at what a network will see: samples after augmentation, labels over images, and the shares of the classes, on one page.

    python scripts/browse_data.py gta5 ./data/GTA5 --out source.html
    python scripts/browse_data.py gta5 ./data/GTA5 --gaussian-blur                        # as train_maxsquare.py sees them
    python scripts/browse_data.py gta5 ./data/GTA5 --random-image-scale                   # as train_clan.py does
    python scripts/browse_data.py cityscapes ./data/Cityscapes --split train --pseudo-labels snapshots/cbst/round0/pseudo_labels
    python scripts/browse_data.py cityscapes ./data/Cityscapes --split train --unlabelled # the target as adaptation sees it
    python scripts/browse_data.py cityscapes ./data/Cityscapes --split train --unlabelled --mix gta5 ./data/GTA5  # ClassMix

The augmentation's flags are those of the training scripts, and so is the order of samples: with the same flags, --batch-size
and --random-seed (for the target: the run's seed plus 1) the first samples here are the first samples of the run. The page
holds its pictures, so it is one file that can be moved.
"""

import html
import os
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from dataset.catalogue import DATA_SETS, IGNORED, ClassSet, class_set, data_set, fitted_size
from dataset.layouts import find_records
from dataset.loader import EndlessLoader
from dataset.reading import image_size
from dataset.segmentation import SegmentationDataset, build_dataset
from dataset.transforms import (
    Compose,
    RandomBlur,
    RandomColorJitter,
    RandomCrop,
    RandomImageScale,
    RandomMirror,
    RandomScale,
    Resize,
    Transform,
)
from utils import parser
from utils.errors import RunError, exit_with_message
from utils.html_page import figure, is_our_page, legend, row, swatch, write_page
from utils.mixing import IDS, class_mask, draw_classes
from utils.outputs import check_file
from utils.parser import Flags, Parser, count, positive, seed
from utils.pictures import colorize
from utils.self_training.label_folders import LabelFolder

MIX = (
    "paste half of the classes of these labelled images into the samples (train_dacs.py does so with crops, then jitters "
    "and blurs)"
)
JITTER = "brightness, contrast, saturation, hue change by up to so much (FADA: 0.2,0.2,0.2,0.1)"
PSEUDO_LABELS = (
    "a folder of labels that a network made (train_cbst.py, train_fada.py, predict.py), shown instead of the true ones"
)


def get_arguments(arguments: list[str] | None = None) -> Flags:
    words = Parser(__doc__)
    words.add_argument(
        "name", metavar="DATASET", type=parser.data_set, choices=DATA_SETS, help=f"one of {', '.join(DATA_SETS)}"
    )
    words.add_argument("root", metavar="ROOT", help="its root in the official layout")
    words.add_argument("--out", default="browse.html", metavar="FILE", help="the page")
    words.add_argument("--split", metavar="SPLIT", help="all, train, val, ... (default: all)")
    words.add_argument("--data-list", metavar="FILE", help="only the images of this list")
    parts = [f"{known.title}: {', '.join(known.parts)}" for known in DATA_SETS.values() if known.parts]
    words.add_argument("--city-name", "--condition", dest="part", metavar="PART", help="; ".join(parts))
    words.add_argument("--num-classes", type=int, choices=(19, 16, 13), help="classes of the labels (default 19)")
    words.add_argument("--pseudo-labels", metavar="DIR", help=PSEUDO_LABELS)
    words.add_switch("--unlabelled", help="images alone")
    words.add_argument("--mix", nargs=2, metavar=("DATASET", "ROOT"), help=MIX)
    words.add_argument("--count", type=positive, default=24, metavar="N", help="samples that are shown")
    words.add_argument("--statistics", type=count, default=200, metavar="N", help="samples whose classes are counted")
    group = words.add_argument_group("augmentation, as in the training scripts")
    group.add_argument("--input-size", type=parser.size, metavar="W,H", help="images are resized to this (default: data set's)")
    words.add_switch("--random-mirror", group=group, default=True, help="mirror every second image")
    words.add_switch("--gaussian-blur", group=group, help="blur every second image, radius below 1 pixel")
    words.add_switch("--random-image-scale", group=group, help="CLAN's: images larger than their labels by a random factor")
    group.add_argument("--color-jitter", type=parser.numbers, metavar="B,C,S,H", help=JITTER)
    group.add_argument(
        "--scale-range", type=parser.scale_range, metavar="LOW,HIGH", help="FADA's: resize by a random factor ..."
    )
    group.add_argument("--crop", type=parser.size, metavar="W,H", help="... and cut a random window")
    group.add_argument("--batch-size", type=positive, default=1, metavar="N", help="some draws are shared by a batch")
    group.add_argument("--random-seed", type=seed, default=1234, metavar="N", help="seeds order and augmentation")
    args = Flags(**vars(words.parse_args(arguments)))
    if args.color_jitter is not None and len(args.color_jitter) != 4:
        words.error(f"--color-jitter: {len(args.color_jitter)} numbers; brightness, contrast, saturation and hue are needed")
    if args.pseudo_labels and args.unlabelled:
        words.error("--pseudo-labels and --unlabelled contradict each other")
    if args.mix and args.mix[0] not in DATA_SETS:
        words.error(f"--mix {args.mix[0]}: is no data set known here: {', '.join(DATA_SETS)}")
    if args.mix and args.random_image_scale:
        words.error("--mix and --random-image-scale contradict each other: mixed labels are as large as their images")
    return args.with_values(split=args.split or "all")


def main(args: Flags) -> None:
    check_file("--out", args.out, is_our_page)
    classes = data_set(args.name, args.root).classes or class_set(args.num_classes or 19)
    dataset = samples_of(args, classes)
    shares = ClassShares(classes)
    rows = []
    total = max(args.count, args.statistics)
    samples = first_samples(args, dataset, total)
    if args.mix:
        samples = mixed(samples, first_samples(args, labelled_images(args, classes), total), args.random_seed)
    for number, sample in enumerate(tqdm(samples, total=total, unit="sample")):
        if number < args.count:
            rows.append(row_of(sample, classes))
        if "label" in sample and number < args.statistics:
            shares.add(sample["label"])
    write_page(args.out, title_of(args, dataset), page_body(args, classes, rows, shares))
    print(f"{len(rows)} samples of {len(dataset)} images: {args.out}")


def samples_of(args: Flags, classes: ClassSet) -> SegmentationDataset:
    """The data set with its labels, with pseudo-labels, or without labels, as the flags say.

    Raises:
        DataError: files are missing, or there are no labels; the message says what to do.
    """
    transform = augmentation(args)
    if args.pseudo_labels is None:
        records = find_records(args.name, args.root, args.split, args.data_list, args.part)
        if not args.unlabelled and any(record.label is None for record in records):
            raise RunError(
                f"{args.root}: split {args.split} has no labels; show images alone with --unlabelled, or --pseudo-labels DIR"
            )
        labels = not args.unlabelled
        return build_dataset(args.name, args.root, args.split, args.data_list, classes, transform, labels, args.part)
    records = find_records(args.name, args.root, args.split, args.data_list, args.part)
    if not os.path.isdir(args.pseudo_labels):
        raise RunError(f"--pseudo-labels {args.pseudo_labels}: no such folder")
    return LabelFolder(args.pseudo_labels, classes).dataset(records, transform, "the method or predict.py makes them")


def labelled_images(args: Flags, classes: ClassSet) -> SegmentationDataset:
    """What --mix pastes: the labelled images, resized and cropped as the samples are."""
    name, root = args.mix
    return build_dataset(name, root, "all", None, classes, augmentation(args))


def mixed(samples: Iterator[dict[str, Any]], labelled: Iterator[dict[str, Any]], random_seed: int) -> Iterator[dict[str, Any]]:
    """Each sample with half of the classes of a labelled one pasted into it (ClassMix); pixels without a label are ignored."""
    generator = torch.Generator().manual_seed(random_seed)
    for sample, source in zip(samples, labelled, strict=True):
        label = source["label"][None]
        pasted = class_mask(label, draw_classes(label, torch.rand(1, IDS, generator=generator)))[0]
        below = sample.get("label", torch.full_like(source["label"], IGNORED))
        yield {
            "image": torch.where(pasted, source["image"], sample["image"]),
            "label": torch.where(pasted, source["label"], below),
            "name": f"{source['name']} in {sample['name']}",
        }


def augmentation(args: Flags) -> Transform:
    """The transforms that the flags ask for, in the order in which the training scripts apply them."""
    size = args.input_size or data_set(args.name).train_size or size_of_first(args)
    jitter: list[Transform] = [RandomColorJitter(args.color_jitter)] if args.color_jitter else []
    mirror: list[Transform] = [RandomMirror()] if args.random_mirror else []
    blur: list[Transform] = [RandomBlur()] if args.gaussian_blur else []
    if args.random_image_scale:
        return Compose([*jitter, RandomImageScale(size), *mirror, *blur])
    if args.scale_range or args.crop:
        scale: list[Transform] = [RandomScale(*args.scale_range)] if args.scale_range else []
        return Compose([*jitter, *scale, RandomCrop(args.crop or size), *mirror, *blur])
    return Compose([*jitter, *mirror, Resize(size), *blur])


def size_of_first(args: Flags) -> tuple[int, int]:
    """(width, height) for the images of a folder, as the training scripts choose it."""
    return fitted_size(image_size(find_records(args.name, args.root, args.split, args.data_list, args.part)[0].image))


def first_samples(args: Flags, dataset: SegmentationDataset, number: int) -> Iterator[dict[str, Any]]:
    """The first samples of the stream that a run with these flags reads."""
    loader = EndlessLoader(dataset, args.batch_size, args.random_seed)
    keys = (key for position in range(number) for key in loader.keys(position))
    return (dataset[key] for key in islice(keys, number))


class ClassShares:
    """Counts the classes of labels.

    Attributes:
        pixels: (256,) of each id.
        images: (256,) labels that have the id.
        labels: how many labels were counted.
    """

    def __init__(self, classes: ClassSet) -> None:
        self.classes, self.labels = classes, 0
        self.pixels, self.images = np.zeros(256, np.int64), np.zeros(256, np.int64)

    def add(self, label: Any) -> None:
        """Count a label (H,W) uint8."""
        counts = np.bincount(np.asarray(label).ravel(), minlength=256)
        self.pixels += counts
        self.images += counts > 0
        self.labels += 1

    def share(self, number: int) -> float:
        """Of all labelled pixels, 0..1."""
        return float(self.pixels[number] / max(1, self.pixels[:IGNORED].sum()))

    @property
    def ignored(self) -> float:
        """Of all pixels, 0..1."""
        return float(self.pixels[IGNORED] / max(1, self.pixels.sum()))


def row_of(sample: dict[str, Any], classes: ClassSet) -> str:
    """A sample as HTML: the image, and where there is a label the label over it and alone."""
    image = sample["image"].permute(1, 2, 0).numpy()
    caption = f"{sample['name']} ({image.shape[1]}x{image.shape[0]})"
    if "label" not in sample:
        return row(figure(image, caption))
    label = sample["label"].numpy()
    # CLAN's images are larger than their labels.
    fitted = np.array(Image.fromarray(label).resize(image.shape[1::-1], Image.Resampling.NEAREST))
    colours = colorize(fitted, classes)
    mixed = np.where((fitted == IGNORED)[..., None], image // 3, (image.astype(int) + colours) // 2).astype(np.uint8)
    ignored = f"label {label.shape[1]}x{label.shape[0]}, {100 * float((label == IGNORED).mean()):.0f} % without a class"
    return row(figure(image, caption), figure(mixed, ignored), figure(colours))


def page_body(args: Flags, classes: ClassSet, rows: list[str], shares: ClassShares) -> str:
    """The page: how the samples were made, legend, class shares, samples."""
    words = html.escape(", ".join(f"{name} {value}" for name, value in augmentation_flags(args).items()))
    parts = [f"<p>{words}</p>"]
    if shares.labels:
        parts += [f"<h2>Classes of {shares.labels} samples</h2>", shares_table(shares)]
    parts.append(f"<h2>The first {len(rows)} samples</h2>")
    if args.mix or not args.unlabelled:
        parts.append(legend(classes) + "<p>Over the image, pixels without a class are dark; alone, they are black.</p>")
    return "\n".join(parts + rows)


def augmentation_flags(args: Flags) -> dict[str, Any]:
    """The flags that shape a sample, as far as they do something."""
    names = ("input_size", "random_mirror", "gaussian_blur", "random_image_scale", "color_jitter", "scale_range", "crop")
    found = {name.replace("_", " "): getattr(args, name) for name in (*names, "batch_size", "random_seed")}
    return {name: value for name, value in found.items() if value not in (None, False)}


def shares_table(shares: ClassShares) -> str:
    """A line for each class: its share of labelled pixels, with a bar, and the samples that show it."""
    highest = max(shares.share(number) for number in range(len(shares.classes)))
    lines = []
    for number, name in enumerate(shares.classes.names):
        share = shares.share(number)
        red, green, blue = shares.classes.colors[number]
        width = 300 * share / max(highest, 1e-9)
        bar = f'<div class="bar" style="width: {width:.0f}px; background: rgb({red},{green},{blue})"></div>'
        seen = 100 * shares.images[number] / shares.labels
        title = f"{swatch(shares.classes, number)}{html.escape(name)}"
        lines.append(f"<tr><td>{title}</td><td>{100 * share:.2f}</td><td>{seen:.0f}</td><td>{bar}</td></tr>")
    header = "<tr><th>class</th><th>% of labelled pixels</th><th>in % of samples</th><th></th></tr>"
    return f"<table>{header}{''.join(lines)}</table><p>Without a class: {100 * shares.ignored:.1f} % of all pixels.</p>"


def title_of(args: Flags, dataset: SegmentationDataset) -> str:
    """The data set, the split and where labels are from."""
    labels = f", labels of {args.pseudo_labels}" if args.pseudo_labels else ""
    return f"{DATA_SETS[args.name].title} ({args.split}, {len(dataset)} images{labels})"


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
