"""AdaBN (Li et al., 2016, 1603.04779): adapt a network by re-estimating its BatchNorm statistics on target images.

No label, no gradient, no weight is touched; each statistic becomes the plain average over --num-images target images. It is the
simplest thing that could work, so every adaptation method should be held against it.

    python scripts/adabn.py --restore-from snapshots/source/GTA5_80000.pth --save snapshots/source/adabn.pth
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch
from tqdm import tqdm

from dataset.loader import EndlessLoader
from dataset.transforms import Resize
from model import load_model
from model.segmenter import Segmenter
from utils import flags
from utils.device import autocast, prepare, set_up
from utils.domains import target_domain
from utils.errors import RunError, exit_with_message
from utils.evaluation import classes_of_network
from utils.old_names import OLD_NAMES
from utils.outputs import check_file
from utils.parser import Flags, Parser, positive, seed
from utils.state import save_tensors


def get_arguments(arguments: list[str] | None = None) -> Flags:
    parser = Parser(__doc__, OLD_NAMES["adabn.py"])
    parser.add_argument("--restore-from", required=True, metavar="FILE", help="weights to adapt")
    parser.add_argument("--save", required=True, metavar="FILE", help="where the adapted weights go")
    parser.add_argument("--num-images", type=positive, default=500, help="target images to average over")
    parser.add_argument("--batch-size", type=positive, default=4, help="images per forward pass")
    parser.add_argument("--random-seed", type=seed, default=1234, help="chooses the images")
    flags.add_target_flags(parser)
    flags.add_part_flags(parser)
    flags.add_speed_flags(parser, workers=4)
    return flags.complete(parser.parse_args(arguments))


@torch.no_grad()
def reestimate_statistics(model: Segmenter, loader: EndlessLoader, steps: int, device: torch.device, args: Flags) -> Segmenter:
    """Replace every BatchNorm's running mean and variance by the average over `steps` batches of `loader`."""
    for norm in model.norms():
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative average instead of an exponential one
    model.set_batch_norm("frozen-affine").train()
    for _ in tqdm(range(steps), unit="batch"):
        with autocast(args, device):
            model(next(loader)["image"].to(device))
    return model.eval()


def main(args: Flags) -> None:
    check_file("--save", args.save)
    device = set_up(args)
    model = prepare(load_model(args.restore_from), args, device)
    if not model.norms():
        name = model.settings["name"]
        raise RunError(
            f"{args.restore_from}: {name} has no BatchNorm, whose statistics AdaBN takes from the target: for it this baseline "
            "is void; compare with source-only, and with training on (train_source.py --restore-from)"
        )
    domain = target_domain(args)
    target = domain.dataset(classes_of_network(model), Resize(domain.size), labels=False)
    loader = EndlessLoader(target, args.batch_size, args.random_seed, args.num_workers)
    reestimate_statistics(model, loader, max(1, args.num_images // args.batch_size), device, args)
    save_tensors(model.state_dict(), args.save, for_originals=True)
    print(f"weights: {args.save}")


if __name__ == "__main__":
    with exit_with_message():
        main(get_arguments())
