"""Compute the spatial prior of CBST-SP from the source's labels, and draw it.

    python scripts/spatial_prior.py --source gta5 --data-dir ./data/GTA5 --draw prior.png
    python train_cbst.py --with-prior ...                  # finds spatial_prior_19.mat beside the data, or prior_array.mat

For each class: how often it is found at each pixel, labels resized to --size, smoothed with a Gaussian, with mean 1.
"""

import os
import sys
from collections.abc import Sequence

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np

from dataset.segmentation import build_dataset
from dataset.spatial_prior import compute_prior, save_prior
from utils import flags
from utils.errors import exit_with_message
from utils.old_names import OLD_NAMES
from utils.outputs import check_file, is_our_picture
from utils.parser import Flags, Parser, above_zero, size
from utils.pictures import grid, save_picture

WIDTH = 192  # of a class's picture


def get_arguments(arguments: Sequence[str] | None = None) -> Flags:
    parser = Parser(__doc__, OLD_NAMES["spatial_prior.py"])
    flags.add_label_flags(parser)
    parser.add_argument("--size", type=size, default=(2048, 1024), metavar="W,H", help="of the prior: the target's images")
    parser.add_argument("--sigma", type=above_zero, help="of the Gaussian in pixels (default 70 / 6 at a width of 2048)")
    parser.add_argument("--output", metavar="FILE", help=".mat or .npz (default spatial_prior_C.mat in the data's root)")
    parser.add_argument("--draw", metavar="FILE", help="also draw it: a picture of each class")
    args = flags.complete_label_flags(parser.parse_args(arguments))
    usual = os.path.join(args.data_dir, f"spatial_prior_{args.num_classes}.mat")
    return args.with_values(output=args.output or usual)


def main(args: Flags) -> None:
    check_file("--output", args.output)
    check_file("--draw", args.draw, is_our_picture)
    classes, place = flags.classes_of(args), flags.part(args, args.source)
    dataset = build_dataset(args.source, args.data_dir, args.source_split, args.data_list, classes, part=place)
    prior = compute_prior(dataset, len(classes), args.size, args.sigma, args.workers)
    for name, plane in zip(classes.names, prior, strict=True):
        if (plane == 1).all():
            print(f"note: no image has {name}; its prior is 1 everywhere")
    save_prior(args.output, prior)
    print(f"written to {args.output}")
    if args.draw:
        save_picture(args.draw, drawing(prior, classes.names))


def drawing(prior: np.ndarray, names: Sequence[str], columns: int = 5) -> np.ndarray:
    """A picture (H,W,3) of all classes, each from black (never there) to white (where it is most often)."""
    step = max(1, prior.shape[2] // WIDTH)
    planes = [(255 * plane[::step, ::step] / plane.max()).astype(np.uint8) for plane in prior]
    pictures = [np.repeat(plane[..., None], 3, axis=2) for plane in planes]
    pictures += [np.full_like(pictures[0], 255)] * (-len(pictures) % columns)
    titles = [*names, *[""] * (len(pictures) - len(names))]
    rows = [grid([pictures[i : i + columns]], titles[i : i + columns]) for i in range(0, len(pictures), columns)]
    return np.concatenate(rows)


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
