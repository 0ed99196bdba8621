"""What a round trains on: some source images with their labels and all target images with their pseudo-labels, in one set."""

import argparse
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dataset.catalogue import ClassSet
from dataset.layouts import Record
from dataset.segmentation import SegmentationDataset

from .crops import CanvasCrop, ScaledCrop
from .labelling import round_labels, round_maps, soft_labels
from .protocols import Protocol
from .score_maps import ScoreMaps
from .thresholds import ClassReport


class SourceAndTarget(Dataset):
    """Source images first, then the target's; samples have `target` (0 or 1) beside `image`, `label`, `name` and `path`.

    Args:
        source, target: without a transform; the target's labels are pseudo-labels.
        chosen: indices of the source images that take part.
        crops: the augmentations of source and target, called with labels of train ids.
        num_classes: of soft labels.
        soft_labels: from a target record to the soft labels (C,H,W) float32 of the whole image (LRENT), or None. With them
            samples have `soft` (C,h,w), one-hot for the source and all 0 where ignored, and crops must be `ScaledCrop`s.
    """

    def __init__(
        self,
        source: SegmentationDataset,
        target: SegmentationDataset,
        chosen: Sequence[int],
        crops: tuple[ScaledCrop | CanvasCrop, ScaledCrop | CanvasCrop],
        num_classes: int,
        soft_labels: Callable[[Record], Tensor] | None = None,
    ) -> None:
        self.source, self.target, self.chosen = source, target, list(chosen)
        self.source_crop, self.target_crop = crops
        self.num_classes, self.soft_labels = num_classes, soft_labels

    def __len__(self) -> int:
        return len(self.chosen) + len(self.target)

    def path(self, index: int) -> str:
        """The file of an image."""
        from_target = index - len(self.chosen)
        return self.target.path(from_target) if from_target >= 0 else self.source.path(self.chosen[index])

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Any]:
        index, seed, batch_seed = key
        rngs = random.Random(seed), random.Random(batch_seed)
        from_target = index >= len(self.chosen)
        sample = self._of_target(index - len(self.chosen), *rngs) if from_target else self._of_source(index, *rngs)
        sample = {key: value.contiguous() if isinstance(value, Tensor) else value for key, value in sample.items()}
        return {**sample, "target": float(from_target)}

    def _of_source(self, number: int, rng: random.Random, batch_rng: random.Random) -> dict[str, Any]:
        sample = self.source[self.chosen[number]]
        sample["image"], sample["label"] = self.source_crop(sample["image"], sample["label"], rng, batch_rng)
        if self.soft_labels is not None:
            sample["soft"] = one_hot(sample["label"], self.num_classes)
        return sample

    def _of_target(self, number: int, rng: random.Random, batch_rng: random.Random) -> dict[str, Any]:
        sample = self.target[number]
        if self.soft_labels is None:
            sample["image"], sample["label"] = self.target_crop(sample["image"], sample["label"], rng, batch_rng)
            return sample
        crop = cast(ScaledCrop, self.target_crop)
        window, sample["label"] = crop.choose(sample["label"], rng)
        sample["image"] = crop.cut_image(sample["image"], window)
        sample["soft"] = crop.cut_soft(self.soft_labels(self.target.records[number]), sample["label"], window)
        return sample


def one_hot(label: Tensor, num_classes: int) -> Tensor:
    """(H,W) uint8 ids to (C,H,W) float32, all 0 where ignored."""
    return (label[None] == torch.arange(num_classes, dtype=torch.uint8)[:, None, None]).float()


def training_set(
    args: argparse.Namespace,
    protocol: Protocol,
    classes: ClassSet,
    report: ClassReport,
    source: SegmentationDataset,
    chosen: Sequence[int],
    records: Sequence[Record],
) -> SourceAndTarget:
    """The `chosen` source images and the target's `records` with the round's pseudo-labels, augmented by the protocol."""
    target = round_labels(args, classes).dataset(records, None, "--resume makes them")
    soft = None
    if args.lr_weight_ent:
        soft = partial(_soft_labels_of, round_maps(args, protocol), torch.tensor(report.thresholds), args.lr_weight_ent)
    return SourceAndTarget(source, target, chosen, protocol.crops(args, report), len(classes), soft)


def _soft_labels_of(maps: ScoreMaps, thresholds: Tensor, alpha: float, record: Record) -> Tensor:
    """LRENT's soft labels (C,H,W) of a whole target image, computed from its map on the disk."""
    return soft_labels(maps.scores(record), thresholds, alpha)


def source_subset(total: int, portion: float, seed: int) -> list[int]:
    """Which of `total` source images take part in a round: positions in the list, as NumPy's legacy generator draws them."""
    return np.random.RandomState(seed).choice(total, int(total * portion), replace=False).tolist()
