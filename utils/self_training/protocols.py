"""The two programs that self-training was published with, as values and plain functions: CRST (PyTorch) and CBST (MXNet).

Scripts choose one and ask it; nothing else knows which one it is.
"""

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from dataset.catalogue import DATA_SETS

from ..coarse_prediction import CoarseProbabilities, FitLongerSide
from .crops import CanvasCrop, ScaledCrop, ScaleImage
from .score_maps import FullSizeLogits, Predictor
from .thresholds import ClassReport, ConfidenceHistograms

Crop = ScaledCrop | CanvasCrop

# What the MXNet code calls data sets where that differs.
MXNET_NAMES = {"gta5": "gta"}


@dataclass(frozen=True)
class Protocol:
    """What differs between the two programs. Functions that take `args` read the flags that only their protocol has.

    Attributes:
        defaults: what the published GTA5 runs use for flags that are not given.
        source_splits: other names for splits of the source.
        heads, aspp_branches: of the network (None: its own).
        usual_weights: the name of the file of starting weights.
        image_to_label: the transform that resizes target images to be labelled.
        predictor: how the network's output becomes maps and scores.
        zeros: confidences of 0 in the list of each class, before there are any others.
        rare_classes: from (histograms, --mine-thresh, --mine-id-number) to the ids (rare, priority), see `ClassReport`.
        soft_labels: whether LRENT is part of it.
        crops, square_crops: the augmentations of source and target; whether they have to be squares.
        untrained_rounds: so many of --num-rounds train nothing.
        next_portion: from a round's portion, the step and the maximum to the next round's.
        random_seed: from --random-seed and the round to the seed of its source images with --source-sample-policy random.
        rate_divisor: the learning rate is divided by it from round to round.
        whole_steps: from the batches in an epoch, a fraction, to its steps.
        repeated_updates: whether --updates applies; the optimizer of MXNet always updated each parameter once.
    """

    defaults: Mapping[str, Any]
    source_splits: Mapping[str, str]
    heads: str | None
    aspp_branches: int | None
    usual_weights: Callable[[argparse.Namespace], str]
    image_to_label: Callable[[argparse.Namespace], ScaleImage | FitLongerSide]
    predictor: Callable[[argparse.Namespace], Predictor]
    zeros: int
    rare_classes: Callable[[ConfidenceHistograms, float, int], tuple[list[int], list[int]]]
    soft_labels: bool
    crops: Callable[[argparse.Namespace, ClassReport], tuple[Crop, Crop]]
    square_crops: bool
    untrained_rounds: int
    next_portion: Callable[[float, float, float], float]
    random_seed: Callable[[int, int], int]
    rate_divisor: float
    whole_steps: Callable[[float], int]
    repeated_updates: bool


def published_weights(args: argparse.Namespace) -> str:
    """CBST: the authors' source-trained weights, of GTA5 or of SYNTHIA."""
    return f"{MXNET_NAMES.get(args.source, args.source)}_rna-a1_cls{args.num_classes}_s8_ep-0000.params"


def scaled_crops(args: argparse.Namespace, report: ClassReport) -> tuple[ScaledCrop, ScaledCrop]:
    """CRST: only the target's crops look for rare classes."""
    scales = (args.scale_rate_range, args.train_scale_tgt) if args.random_scale else (None, None)
    target = ScaledCrop(args.input_size, scales[1], args.random_mirror, report.rare, args.mine_port)
    return ScaledCrop(args.input_size, scales[0], args.random_mirror), target


def canvas_crops(args: argparse.Namespace, report: ClassReport) -> tuple[CanvasCrop, CanvasCrop]:
    """CBST: crops of both domains look for rare classes, and have sides that are multiples of 8."""
    side = math.ceil(args.input_size[0] / 8) * 8
    longest_source, longest_target = DATA_SETS[args.source].longest_side, DATA_SETS[args.target].longest_side
    domains = (
        (args.scale_rate_range, args.origin_size or longest_source, longest_source),
        (args.train_scale_tgt, args.origin_size_tgt, longest_target),
    )
    source, target = (CanvasCrop(side, *domain, report.priority, report.rare, args.mine_port) for domain in domains)
    return source, target


def classes_below(histograms: ConfidenceHistograms, share: float, count: int) -> tuple[list[int], list[int]]:
    """CRST: the classes that fewer than `share` of the pixels are predicted as, the rarest first."""
    shares = (histograms.pixels / histograms.pixels.sum()).cpu()
    return shares.argsort(stable=True)[: int((shares < share).sum())].tolist(), []


def rarest_classes(histograms: ConfidenceHistograms, share: float, count: int) -> tuple[list[int], list[int]]:
    """CBST: the `count` rarest classes by confidences counted, each list with its zero; first those below `share`."""
    sizes = histograms.sizes() + (histograms.sizes() > 0)
    shares = sizes / sizes.sum()
    return shares.argsort(stable=True)[:count].tolist(), (shares < share).nonzero().flatten().tolist()


def at_most(portion: float, step: float, most: float) -> float:
    """CRST: a step more, up to the maximum."""
    return max(portion, min(portion + step, most))


def while_below(portion: float, step: float, most: float) -> float:
    """CBST: the driver looks at the maximum before it adds, so a portion may go beyond it by less than a step.

    It hands portions on as text of 12 digits.
    """
    return float(f"{portion + step:.12g}") if portion < most else portion


def _after_the_first(seed: int, round_number: int) -> int:
    return seed + 1 + round_number


def _the_round(seed: int, round_number: int) -> int:
    return round_number


CRST = Protocol(
    defaults=MappingProxyType(
        {
            "learning_rate": 5e-5,
            "power": 0.0,
            "num_rounds": 4,
            "init_tgt_port": 0.2,
            "init_src_port": 0.03,
            "random_seed": 3,
            "source_sample_policy": "random",
            "input_size": (1024, 512),
            "scale_rate_range": (0.5, 1.5),
            "batch_norm": "frozen",
        }
    ),
    source_splits=MappingProxyType({}),
    heads="single",
    aspp_branches=4,
    usual_weights=lambda args: "src_model.pth",
    image_to_label=lambda args: ScaleImage(args.eval_scale),
    predictor=lambda args: FullSizeLogits(args.test_flipping),
    zeros=0,
    rare_classes=classes_below,
    soft_labels=True,
    crops=scaled_crops,
    square_crops=False,
    untrained_rounds=1,
    next_portion=at_most,
    random_seed=_after_the_first,
    rate_divisor=1.0,
    whole_steps=math.ceil,
    repeated_updates=True,
)

MXNET = Protocol(
    defaults=MappingProxyType(
        {
            "learning_rate": 1e-4,
            "power": 0.0,
            "num_rounds": 6,
            "init_tgt_port": 0.15,
            "init_src_port": 0.03,
            "random_seed": 0,
            "source_sample_policy": "cumulative",
            "input_size": (504, 504),
            "scale_rate_range": (0.7, 1.3),
            "batch_norm": "frozen-statistics",
        }
    ),
    source_splits=MappingProxyType({"train": "all"}),  # its train.lst names every image
    heads=None,
    aspp_branches=None,
    usual_weights=published_weights,
    image_to_label=lambda args: FitLongerSide(args.test_scales),
    predictor=lambda args: CoarseProbabilities(args.test_flipping, args.test_steps),
    zeros=1,
    rare_classes=rarest_classes,
    soft_labels=False,
    crops=canvas_crops,
    square_crops=True,
    untrained_rounds=0,
    next_portion=while_below,
    random_seed=_the_round,
    rate_divisor=math.sqrt(2),
    whole_steps=math.floor,
    repeated_updates=False,
)

# By the names of --protocol.
PROTOCOLS: Mapping[str, Protocol] = MappingProxyType({"crst": CRST, "cbst": MXNET})


def usual_protocol(model: str) -> str:
    """The name of the protocol that a network goes with: ResNet-38 is the MXNet program's, all others follow CRST."""
    return {"ResNet38": "cbst"}.get(model, "crst")
