"""The data that a training script's flags describe, as loaders."""

import os

from dataset.catalogue import class_set
from dataset.class_statistics import class_balanced_order as balanced_order
from dataset.class_statistics import count_classes, read_statistics, write_statistics
from dataset.loader import EndlessLoader, sequential_loader
from dataset.segmentation import build_dataset
from dataset.transforms import Resize

from . import distributed


def source_dataset(args, transform):
    """The labelled source images."""
    return build_dataset(args.source, args.data_dir, args.source_split, args.data_list, class_set(args.num_classes), transform,
                         part=args.city_name)  # fmt: skip


def source_loader(args, transform):
    """Endless labelled source batches."""
    return endless(args, source_dataset(args, transform))


def endless(args, dataset, seed_offset=0, order=None):
    """Endless batches of a data set: this process's share of each."""
    return EndlessLoader(dataset, args.batch_size, args.random_seed + seed_offset, order=order, **_share(args))


def target_dataset(args, transform):
    """The target images, without labels."""
    return build_dataset(args.target, args.data_dir_target, args.set, args.data_list_target, class_set(args.num_classes),
                         transform, labels=False, part=args.city_name)  # fmt: skip


def target_loader(args, transform):
    """Endless target batches without labels, in an order of their own."""
    return endless(args, target_dataset(args, transform), seed_offset=1)


def class_balanced_order(args, dataset, statistics, directory):
    """An order of the source images that shows rare classes often, from the file `statistics` or from the usual places.

    Statistics that are nowhere to be found are made, and kept in `directory`.
    """
    name = f"class_statistics_{args.num_classes}.json"
    made = os.path.join(directory, name)
    usual = [made, *(os.path.join(args.data_dir, usual) for usual in (name, "gtav_label_info.p", "synthia_label_info.p"))]
    path = statistics or next((path for path in usual if os.path.exists(path)), None)
    distributed.wait_for_all()  # all processes have looked before one writes
    if path is None:
        path = made
        if distributed.is_main():
            print(f"no class statistics in {args.data_dir}: counting the classes of {len(dataset)} labels, once, into {made}")
            write_statistics(made, count_classes(dataset, max(1, args.num_workers)), class_set(args.num_classes))
        distributed.wait_for_all()
    order = balanced_order(dataset, read_statistics(path, class_set(args.num_classes)), args.random_seed, path)
    if order.absent and distributed.is_main():
        print(f"note: no image has {', '.join(class_set(args.num_classes).names[c] for c in order.absent)}")
    return order


def source_val_loader(args):
    """The source's val split, one image at a time, labels at full size; None without --val-every."""
    return _val_loader(args, args.source, args.data_dir, args.input_size)


def target_val_loader(args, size=None):
    """The target's val split, one image at a time, labels at full size; None without --val-every."""
    return _val_loader(args, args.target, args.data_dir_target, size or args.input_size_target)


def _val_loader(args, name, root, size):
    if not args.val_every:
        return None
    transform = Resize(size, label=False)
    dataset = build_dataset(name, root, "val", None, class_set(args.num_classes), transform, part=args.city_name)
    return sequential_loader(dataset, **_share(args))


def _share(args):
    return {"num_workers": args.num_workers, "rank": distributed.rank(), "world_size": distributed.world_size()}
