"""The flags of labelling and of crops, and the values that the two programs were published with."""

import argparse
from typing import Any

from dataset.catalogue import DATA_SETS
from model.networks import known_name

from ..errors import RunError
from ..parser import Flags, Parser, above_zero, count, fraction, positive, scale_range
from .protocols import PROTOCOLS, Protocol, usual_protocol


def add_labelling_flags(parser: Parser) -> None:
    """How target images are predicted, and which pixels get a label."""
    group = parser.add_argument_group("pseudo-labels")
    group.add_argument("--kc-policy", choices=("cb", "global"), default="cb", help="a threshold per class, or one for all (ST)")
    parser.add_switch("--with-prior", group=group, help="CBST-SP: multiply the probabilities by the spatial prior")
    group.add_argument(
        "--prior", metavar="FILE", help="the prior (default: the source's spatial_prior_C.mat or prior_array.mat)"
    )
    group.add_argument("--ds-rate", type=positive, default=4, metavar="N", help="thresholds are chosen on every Nth pixel")
    group.add_argument("--eval-scale", type=above_zero, default=0.9, metavar="F", help="crst: images to label are scaled by F")
    group.add_argument("--test-scales", type=positive, default=1850, metavar="N", help="cbst: their longer side becomes N")
    group.add_argument(
        "--test-steps", type=int, choices=(1, 2, 4), default=1, help="cbst: average NxN passes of shifted images"
    )
    parser.add_switch("--test-flipping", group=group, default=True, help="average with the prediction of the mirror image")


def add_crop_flags(parser: Parser) -> None:
    """Augmentation and the mining of rare classes."""
    group = parser.add_argument_group("crops")
    group.add_argument("--mine-port", type=fraction, default=0.8, metavar="P", help="chance that a crop is put on a rare class")
    group.add_argument("--mine-thresh", type=fraction, default=0.001, metavar="P", help="classes with a smaller share are rare")
    group.add_argument(
        "--mine-id-number", type=count, default=3, metavar="N", help="cbst: rarest classes, if none is that rare"
    )
    group.add_argument(
        "--scale-rate-range",
        type=scale_range,
        metavar="LOW,HIGH",
        help="random scales of the source (default 0.5,1.5; cbst 0.7,1.3)",
    )
    group.add_argument("--train-scale-tgt", type=scale_range, metavar="LOW,HIGH", help="of the target (default: as the source)")
    parser.add_switch("--random-mirror", group=group, default=True, help="crst: mirror half of the crops (cbst always does)")
    parser.add_switch("--random-scale", group=group, default=True, help="crst: scale images at random (cbst always does)")
    group.add_argument(
        "--origin-size", type=positive, metavar="N", help="cbst: longer side of source images (default: official)"
    )
    group.add_argument("--origin-size-tgt", type=positive, default=2048, metavar="N", help="cbst: longer side of target images")


def with_published_values(args: argparse.Namespace) -> Flags:
    """The flags, with the values of the protocol's published GTA5 runs where none are given."""
    args, model = Flags(**vars(args)), known_name(args.model)
    protocol = PROTOCOLS[args.protocol or usual_protocol(model)]
    values: dict[str, Any] = {key: value for key, value in protocol.defaults.items() if getattr(args, key) is None}
    values |= {"model": model, "protocol": args.protocol or usual_protocol(model)}
    if "_rna-a1_cls" in args.model:  # MXNet's names say everything: cityscapes_rna-a1_cls19_s8
        values["num_classes"] = int(args.model.split("_cls")[1].split("_")[0])
    if args.is_training and args.batch_norm is None:
        values["batch_norm"] = "frozen-affine"
    if not protocol.repeated_updates:
        values["updates"] = "clean"
    values["source_split"] = protocol.source_splits.get(args.source_split, args.source_split)
    values["input_size_target"] = args.input_size_target or DATA_SETS[args.target].image_size
    args = args.with_values(**values)
    return args.with_values(train_scale_tgt=args.train_scale_tgt or args.scale_rate_range)


def check(args: argparse.Namespace, protocol: Protocol) -> None:
    """Refuse flags that do not go together.

    Raises:
        RunError: naming them.
    """
    if protocol is not PROTOCOLS[usual_protocol(args.model)]:
        raise RunError(
            f"--protocol {args.protocol} does not go with --model {args.model}: cbst is for ResNet38, crst for other networks"
        )
    if args.lr_weight_ent and (args.with_prior or not protocol.soft_labels):
        raise RunError("--lr-weight-ent belongs to --protocol crst, without --with-prior")
    width, height = args.input_size
    if protocol.square_crops and width != height:
        raise RunError(f"--input-size {width},{height}: crops of --protocol {args.protocol} are square")
    if args.num_rounds <= protocol.untrained_rounds:
        raise RunError(
            f"--num-rounds must be at least {protocol.untrained_rounds + 1} for --protocol {args.protocol}, "
            f"which leaves {protocol.untrained_rounds} of them untrained"
        )
