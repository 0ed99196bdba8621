"""The two domains that a script's flags describe, as data sets and loaders."""

import os
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch.utils.data import DataLoader

from dataset.catalogue import DATA_SETS, ClassSet
from dataset.class_statistics import (
    ClassBalancedOrder,
    class_balanced_order,
    classes_with_pixels,
    count_pixels,
    read_pixels,
    read_statistics,
    write_statistics,
)
from dataset.layouts import has_labels
from dataset.loader import EndlessLoader, ImageDataset, sequential_loader
from dataset.rare_classes import RareClassOrder, RareClassSampling
from dataset.segmentation import SegmentationDataset, build_dataset
from dataset.transforms import Resize

from . import distributed
from .flags import part


class Domain(NamedTuple):
    """Which images of which data set, and their size (W,H) for the network."""

    name: str
    root: str
    split: str
    list_file: str | None
    part: str | None
    size: tuple[int, int]

    def dataset(self, classes: ClassSet, transform: Callable | None = None, labels: bool = True) -> SegmentationDataset:
        """Its images, with labels of these classes or without."""
        return build_dataset(self.name, self.root, self.split, self.list_file, classes, transform, labels, self.part)

    def title(self) -> str:
        """For people: `GTA5 (all)`."""
        return f"{DATA_SETS[self.name].title} ({', '.join(filter(None, (self.part, self.split)))})"


def source_domain(args: Namespace) -> Domain:
    """The labelled source."""
    name, size = args.source, args.input_size
    return Domain(name, args.data_dir, args.source_split, args.data_list, part(args, name), size)


def target_domain(args: Namespace) -> Domain:
    """The target, whose labels no training reads."""
    name, size = args.target, args.input_size_target
    return Domain(name, args.data_dir_target, args.set, args.data_list_target, part(args, name), size)


def source_loader(args: Namespace, classes: ClassSet, transform: Callable) -> EndlessLoader:
    """Endless labelled source batches."""
    return endless(args, source_domain(args).dataset(classes, transform))


def target_loader(args: Namespace, classes: ClassSet, transform: Callable) -> EndlessLoader:
    """Endless target batches without labels, in an order of their own."""
    return endless(args, target_domain(args).dataset(classes, transform, labels=False), seed_offset=1)


def endless(
    args: Namespace,
    dataset: ImageDataset,
    seed_offset: int = 0,
    order: Sequence[int] | ClassBalancedOrder | RareClassOrder | None = None,
    batch_size: int | None = None,
) -> EndlessLoader:
    """Endless batches of a data set: this process's share (`batch_size`, or else --batch-size) of each."""
    return EndlessLoader(
        dataset,
        batch_size or args.batch_size,
        args.random_seed + seed_offset,
        order=order,
        skip_bad=args.on_bad_sample == "skip",
        **_share(args),
    )


def source_val_loader(args: Namespace, classes: ClassSet) -> DataLoader | None:
    """The source's val split, one image at a time, labels at full size; None without --val-every or without such a split."""
    domain = source_domain(args)
    return _val_loader(args, domain, classes, Resize(domain.size, label=False))


def target_val_loader(
    args: Namespace, classes: ClassSet, size: tuple[int, int] | None = None, transform: Callable | None = None
) -> DataLoader | None:
    """The target's val split in the same way; `size` (W,H) instead of the training images', or any `transform`."""
    domain = target_domain(args)
    return _val_loader(args, domain, classes, transform or Resize(size or domain.size, label=False))


def _val_loader(args: Namespace, domain: Domain, classes: ClassSet, transform: Callable) -> DataLoader | None:
    if args.val_every == 0:
        return None
    if not has_labels(domain.name, domain.root, "val", domain.part):
        if distributed.is_main():
            print(f"no validation: {domain.root} has no labelled val split")
        return None
    domain = domain._replace(split="val", list_file=None)
    return sequential_loader(domain.dataset(classes, transform), **_share(args))


def _share(args: Namespace) -> dict[str, Any]:
    return {"num_workers": args.num_workers, "rank": distributed.rank(), "world_size": distributed.world_size()}


def class_balanced_loader(
    args: Namespace, classes: ClassSet, transform: Callable, statistics: str | None, directory: str
) -> EndlessLoader:
    """Endless labelled source batches in which images with rare classes come more often; see `source_statistics`."""
    dataset = source_domain(args).dataset(classes, transform)
    path = source_statistics(args, dataset, classes, statistics, directory)
    order = class_balanced_order(dataset, read_statistics(path, classes), args.random_seed, path)
    if order.absent and distributed.is_main():
        print(f"note: no image has {', '.join(classes.names[c] for c in order.absent)}")
    return endless(args, dataset, order=order)


def rare_class_loader(
    args: Namespace, classes: ClassSet, transforms: tuple[Callable, Callable], temperature: float, min_pixels: int
) -> EndlessLoader:
    """Endless crops of source images by their classes (see `RareClassSampling`), with the statistics that
    --class-statistics names; see `source_statistics`.

    Args:
        transforms: of the whole image, and the crop.
    """
    resize, crop = transforms
    dataset = source_domain(args).dataset(classes, resize)
    path = source_statistics(args, dataset, classes, args.class_statistics, args.snapshot_dir)
    sampled = RareClassSampling(dataset, crop, read_pixels(path, classes), temperature, min_pixels)
    if sampled.left_out and distributed.is_main():
        names = ", ".join(classes.names[c] for c in sampled.left_out)
        print(f"note: no image has more than {min_pixels} pixels of {names}: not sampled by class")
    return endless(args, sampled, order=sampled.order(args.random_seed))


def source_statistics(
    args: Namespace, dataset: SegmentationDataset, classes: ClassSet, path: str | None, directory: str
) -> str:
    """The file that says which class is in which source image: `path`, or one in a usual place.

    Statistics that are nowhere to be found are made, and kept in `directory`.
    """
    name = f"class_statistics_{len(classes)}.json"
    made = os.path.join(directory, name)
    usual = [made, *(os.path.join(args.data_dir, usual) for usual in (name, "gtav_label_info.p", "synthia_label_info.p"))]
    path = path or next((path for path in usual if os.path.exists(path)), None)
    distributed.wait_for_all()  # all processes have looked before one writes
    if path is None:
        path = made
        if distributed.is_main():
            print(f"no class statistics in {args.data_dir}: counting the classes of {len(dataset)} labels, once, into {made}")
            pixels = count_pixels(dataset, max(1, args.num_workers), skip_bad=args.on_bad_sample == "skip")
            write_statistics(made, classes_with_pixels(pixels), classes, pixels)
        distributed.wait_for_all()
    return path
