"""The flags of labelling and of crops, their published values, and what the two original programs call flags."""

import argparse
from typing import Any

from model.networks import known_name

from ..arguments import Parser, numbers, positive, with_values
from .protocols import PROTOCOLS, Protocol, usual_protocol


def add_labelling_flags(parser: Parser) -> None:
    """How target images are predicted, and which pixels get a label."""
    group = parser.add_argument_group("pseudo-labels")
    group.add_argument("--kc-policy", choices=("cb", "global"), default="cb", help="a threshold per class, or one for all (ST)")
    parser.add_switch("--with-prior", group=group, help="CBST-SP: multiply the probabilities by the spatial prior")
    group.add_argument(
        "--prior", metavar="FILE", help="spatial prior (default: spatial_prior_C.mat or prior_array.mat in the source's root)"
    )
    group.add_argument("--ds-rate", type=positive, default=4, metavar="N", help="thresholds are chosen on every Nth pixel")
    group.add_argument("--eval-scale", type=float, default=0.9, metavar="F", help="crst: target images are scaled by F")
    group.add_argument(
        "--test-scales", type=int, default=1850, metavar="N", help="cbst: target images are resized to this longer side"
    )
    group.add_argument(
        "--test-steps", type=int, choices=(1, 2, 4), default=1, help="cbst: average over NxN passes of shifted images"
    )
    parser.add_switch("--test-flipping", group=group, default=True, help="average with the prediction of the mirror image")


def add_crop_flags(parser: Parser) -> None:
    """Augmentation and the mining of rare classes."""
    group = parser.add_argument_group("crops")
    group.add_argument(
        "--mine-port", "--mine-chance", type=float, default=0.8, metavar="P", help="chance that a crop is put on a rare class"
    )
    group.add_argument(
        "--mine-thresh", type=float, default=0.001, metavar="P", help="a class is rare if its share of the target is below P"
    )
    group.add_argument(
        "--mine-id-number",
        type=int,
        default=3,
        metavar="N",
        help="cbst: how many of the rarest classes to mine in images that have none below --mine-thresh",
    )
    group.add_argument(
        "--scale-rate-range",
        "--train-scale-src",
        type=numbers,
        metavar="LOW,HIGH",
        help="range of random scales (default 0.5,1.5; cbst 0.7,1.3)",
    )
    group.add_argument(
        "--train-scale-tgt", type=numbers, metavar="LOW,HIGH", help="the same for the target (default: as the source's)"
    )
    parser.add_switch("--random-mirror", group=group, default=True, help="crst: mirror half of the crops (cbst always does)")
    parser.add_switch("--random-scale", group=group, default=True, help="crst: scale images at random (cbst always does)")
    group.add_argument(
        "--origin-size", type=int, metavar="N", help="cbst: longer side of source images (default: of the data set)"
    )
    group.add_argument("--origin-size-tgt", type=int, default=2048, metavar="N", help="cbst: longer side of target images")


def accept_old_names(parser: Parser) -> None:
    """What the two originals call the flags, and their flags that had no effect there or have none here."""
    parser.also("--data-dir", "--data-root", "--data-src-dir")
    parser.also("--data-dir-target", "--data-root-tgt", "--data-tgt-dir")
    parser.also("--data-list", "--data-src-list")
    parser.also("--data-list-target", "--data-tgt-train-list")
    parser.also("--restore-from", "--weights")
    parser.also("--snapshot-dir", "--output", "--save")
    parser.also("--batch-size", "--batch-images")
    parser.also("--learning-rate", "--base-lr")
    parser.also("--random-seed", "--seed-int", "--randseed")
    parser.also("--num-workers", "--prefetch-threads")
    parser.also("--gpu", "--gpus")
    parser.accept_without_effect(
        "--rm-prob", "--debug", "--eval-training", "--pin-memory", "--no-cudnn", "--backward-do-mirror"
    )
    names = "to-epoch split-tgt self-training-script log-file rare-cls-num kc-value ignore-label data-tgt-test-list"
    names += " test-image-size test-scale cache-images kvstore prefetcher phase num-steps num-steps-stop"
    parser.accept_without_effect(*(f"--{name}" for name in names.split()), takes_value=True)


def with_published_values(args: argparse.Namespace) -> argparse.Namespace:
    """The flags, with the values of the protocol's published GTA5 runs where none are given."""
    values: dict[str, Any] = {"model": known_name(args.model)}
    if "_rna-a1_cls" in args.model:  # MXNet's names say everything: cityscapes_rna-a1_cls19_s8
        values["num_classes"] = int(args.model.split("_cls")[1].split("_")[0])
    values["protocol"] = args.protocol or usual_protocol(values["model"])
    protocol = PROTOCOLS[values["protocol"]]
    values["source_split"] = protocol.source_splits.get(args.source_split, args.source_split)
    if args.is_training and args.batch_norm is None:
        values["batch_norm"] = "frozen-affine"
    missing = {key: value for key, value in protocol.defaults.items() if getattr(args, key) is None}
    args = with_values(args, **{**missing, **values})
    return with_values(args, train_scale_tgt=args.train_scale_tgt or args.scale_rate_range)


def check(args: argparse.Namespace, protocol: Protocol) -> None:
    """Refuse flags that do not go together.

    Raises:
        ValueError: naming them.
    """
    if protocol is not PROTOCOLS[usual_protocol(args.model)]:
        raise ValueError(
            f"--protocol {args.protocol} does not go with --model {args.model}: cbst is for ResNet38, crst for other networks"
        )
    if args.lr_weight_ent and (args.with_prior or not protocol.soft_labels):
        raise ValueError("--lr-weight-ent belongs to --protocol crst, without --with-prior")
    if not 0 < args.init_tgt_port <= 1 or not 0 <= args.init_src_port <= 1:
        raise ValueError("--init-tgt-port and --init-src-port are portions, between 0 and 1")
    if len(args.scale_rate_range) != 2 or len(args.train_scale_tgt) != 2:
        raise ValueError("--scale-rate-range and --train-scale-tgt want two numbers")
    width, height = args.input_size
    if protocol.square_crops and width != height:
        raise ValueError(f"--input-size {width},{height}: crops of --protocol {args.protocol} are square")
    if args.num_rounds <= protocol.untrained_rounds:
        raise ValueError(
            f"--num-rounds must be at least {protocol.untrained_rounds + 1} for --protocol {args.protocol}, "
            f"which leaves {protocol.untrained_rounds} of them untrained"
        )
