"""Compute the spatial prior of CBST-SP from the source's labels, and draw it.

    python scripts/spatial_prior.py --source gta5 --data-dir ./data/GTA5 --draw prior.png
    python train_cbst.py --with-prior ...                  # finds spatial_prior_19.mat beside the data, or prior_array.mat

For each class: how often it is found at each pixel, labels resized to --size, smoothed with a Gaussian, with mean 1.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Sequence

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np

from dataset.catalogue import class_set, data_set
from dataset.segmentation import build_dataset
from dataset.spatial_prior import compute_prior, save_prior
from utils.arguments import Parser, add_label_flags, set_label_defaults, size
from utils.pictures import grid, save_picture
from utils.start import exit_with_message

WIDTH = 192  # of a class's picture


def get_arguments(arguments: Sequence[str] | None = None) -> Namespace:
    parser = Parser(__doc__)
    add_label_flags(parser)
    parser.also("--city-name", "--condition")
    parser.add_argument("--size", type=size, default=(2048, 1024), metavar="W,H", help="of the prior: the target's images")
    parser.add_argument("--sigma", type=float, help="of the Gaussian in pixels (default 70 / 6 at a width of 2048)")
    parser.add_argument("--output", metavar="FILE", help=".mat or .npz (default spatial_prior_C.mat in the data's root)")
    parser.add_argument("--draw", metavar="FILE", help="also draw it: a picture of each class")
    args = set_label_defaults(parser.parse_args(arguments))
    args.classes = data_set(args.source, args.data_dir).classes or class_set(args.num_classes)
    args.output = args.output or os.path.join(args.data_dir, f"spatial_prior_{len(args.classes)}.mat")
    return args


def main(args: Namespace) -> None:
    dataset = build_dataset(args.source, args.data_dir, args.source_split, args.data_list, args.classes, part=args.city_name)
    prior = compute_prior(dataset, len(args.classes), args.size, args.sigma, args.workers)
    for name, plane in zip(args.classes.names, prior, strict=True):
        if (plane == 1).all():
            print(f"note: no image has {name}; its prior is 1 everywhere")
    save_prior(args.output, prior)
    print(f"written to {args.output}")
    if args.draw:
        save_picture(args.draw, drawing(prior, args.classes.names))


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
