"""Labelling the target, resumably: in a round (score maps on the disk, thresholds from them, labels from both), or every pixel
with the plain prediction."""

import argparse
import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from dataset.catalogue import IGNORED, ClassSet
from dataset.layouts import Record
from dataset.loader import sequential_loader
from dataset.segmentation import SegmentationDataset
from model.segmenter import Segmenter

from .. import distributed
from ..decision import highest
from ..device import autocast
from ..evaluation import predictions
from ..files import sweep_below
from .label_folders import LabelFolder, left_over, progress
from .prior import SpatialPrior
from .protocols import Protocol
from .score_maps import ScoreMaps
from .thresholds import POLICIES, ClassReport, ConfidenceHistograms, most_likely


def select(scores: Tensor, thresholds: Tensor, alpha: float | None = None) -> Tensor:
    """Pseudo-labels (H,W) uint8 from scores (C,H,W): argmax of p_c / t_c, 255 where that is below 1.

    With `alpha` (LRENT) a pixel is kept where sum_c (p_c / t_c)^(1/alpha) exceeds 1.
    """
    ratio = scores / thresholds.to(scores)[:, None, None]
    best, label = highest(ratio)
    kept = best >= 1 if alpha is None else (ratio ** (1 / alpha)).sum(0) > 1
    return label.where(kept, IGNORED)


def soft_labels(scores: Tensor, thresholds: Tensor, alpha: float) -> Tensor:
    """LRENT's soft labels (C,H,W): (p_c / t_c)^(1/alpha), normalised over the classes."""
    ratio = scores / thresholds.to(scores)[:, None, None]
    # Powers would leave the range of float32 for small alpha.
    return F.softmax(torch.log(ratio.clamp(min=1e-30)) / alpha, dim=0)


def round_maps(
    args: argparse.Namespace, protocol: Protocol, prior: SpatialPrior | None = None, device: torch.device | str = "cpu"
) -> ScoreMaps:
    """The score maps in a round's directory."""
    return ScoreMaps(os.path.join(args.snapshot_dir, "maps"), protocol.predictor(args), prior, device)


def round_labels(args: argparse.Namespace, classes: ClassSet) -> LabelFolder:
    """The pseudo-labels in a round's directory."""
    return LabelFolder(os.path.join(args.snapshot_dir, "pseudo_labels"), classes)


@torch.inference_mode()
def label_target(
    args: argparse.Namespace,
    protocol: Protocol,
    classes: ClassSet,
    portion: float,
    network: Segmenter,
    images: SegmentationDataset,
    prior: SpatialPrior | None,
    device: torch.device,
) -> ClassReport:
    """Pseudo-labels of all target images, and what `thresholds.json` says, in the round's directory; what is there stays.

    Args:
        portion: of the pixels predicted as each class, that is to be kept.
        images: the target, resized by the protocol's `image_to_label`.

    Raises:
        RunError, DataError: as `ScoreMaps` and `LabelFolder`.
    """
    network.eval()
    maps, labels = round_maps(args, protocol, prior, device), round_labels(args, classes)
    labels.check_names(images.records)
    if distributed.is_main():
        sweep_below(args.snapshot_dir, (".json", ".npz"))

    def write_maps(needless: Callable[[Record], bool] = maps.has) -> None:
        maps.write(network, left_over(images, needless), args.num_workers, lambda: autocast(args, device))

    found = os.path.join(args.snapshot_dir, "thresholds.json")
    if not os.path.exists(found) or args.lr_weight_ent:
        write_maps()
    if not os.path.exists(found):
        histograms = ConfidenceHistograms(len(classes), args.ds_rate, device)
        for record in progress(images.records[distributed.rank() :: distributed.world_size()], "confidence"):
            histograms.add(*most_likely(maps.bands(record)))
        report = report_classes(args, protocol, portion, histograms.reduce())
        if distributed.is_main():
            report.write(found)
        distributed.wait_for_all()
    report = ClassReport.read(found)

    labels.claim("auto", portion=report.portion, thresholds=report.thresholds)
    unlabelled = [images.records[i] for i in left_over(images, labels.has).indices]
    if unlabelled:
        write_maps(lambda record: labels.has(record) or maps.has(record))
    thresholds, alpha = torch.tensor(report.thresholds, device=device), args.lr_weight_ent or None
    for record in progress(unlabelled[distributed.rank() :: distributed.world_size()], "labels"):
        label = torch.cat([select(scores, thresholds, alpha) for scores in maps.bands(record)])
        labels.write(record.name, label.cpu().numpy())
    distributed.wait_for_all()
    return report


def report_classes(
    args: argparse.Namespace, protocol: Protocol, portion: float, histograms: ConfidenceHistograms
) -> ClassReport:
    """The thresholds of --kc-policy that keep `portion` of the pixels, and the classes that are rare by the protocol."""
    rare, priority = protocol.rare_classes(histograms, args.mine_thresh, args.mine_id_number)
    thresholds = POLICIES[args.kc_policy](histograms, portion, protocol.zeros)
    return ClassReport(portion, thresholds.tolist(), histograms.pixels.tolist(), rare, priority)


def label_every_pixel(
    args: argparse.Namespace, network: Segmenter, images: SegmentationDataset, labels: LabelFolder, device: torch.device
) -> None:
    """Pseudo-labels of all images at their own size: the classes that the network predicts; what is there stays.

    Args:
        images: the target, resized for the network.

    Raises:
        DataError: two images would share a label.
    """
    labels.check_names(images.records)
    missing = left_over(images, labels.has)
    loader = sequential_loader(missing, args.num_workers, distributed.rank(), distributed.world_size())
    labelled = predictions(network, loader, device, autocast=lambda: autocast(args, device))
    for batch, prediction in progress(labelled, "labels", len(loader)):
        labels.write(batch["name"][0], prediction[0].cpu().numpy())
    distributed.wait_for_all()
