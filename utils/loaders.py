"""The data that a training script's flags describe, as loaders."""

from dataset import EndlessLoader, build_dataset, sequential_loader
from dataset.transforms import Resize

from . import distributed


def source_loader(args, transform):
    """Endless labelled source batches."""
    dataset = build_dataset(args.source, args.data_dir, args.source_split, args.data_list, args.num_classes, transform,
                            city=args.city_name)  # fmt: skip
    return EndlessLoader(dataset, args.batch_size, args.random_seed, **_share(args))


def target_loader(args, transform):
    """Endless target batches without labels, in an order of their own."""
    dataset = build_dataset(args.target, args.data_dir_target, args.set, args.data_list_target, args.num_classes, transform,
                            labels=False, city=args.city_name)  # fmt: skip
    return EndlessLoader(dataset, args.batch_size, args.random_seed + 1, **_share(args))


def source_val_loader(args):
    """The source's val split, one image at a time, labels at full size; None without --val-every."""
    return _val_loader(args, args.source, args.data_dir, args.input_size)


def target_val_loader(args):
    """The target's val split, one image at a time, labels at full size; None without --val-every."""
    return _val_loader(args, args.target, args.data_dir_target, args.input_size_target)


def _val_loader(args, name, root, size):
    if not args.val_every:
        return None
    dataset = build_dataset(name, root, "val", None, args.num_classes, Resize(size, label=False), city=args.city_name)
    return sequential_loader(dataset, **_share(args))


def _share(args):
    return {"num_workers": args.num_workers, "rank": distributed.rank(), "world_size": distributed.world_size()}
