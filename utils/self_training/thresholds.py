"""Confidence thresholds at any data size: streaming histograms, and the thresholds read from them.

CBST keeps a pixel if its largest p_c / t_c is at least 1, t_c a threshold such that a given portion of the pixels predicted as
class c is kept.
"""

import dataclasses
import json
from collections.abc import Iterable

import torch
from torch import Tensor

from ..decision import highest
from ..distributed import sum_across_processes, world_size
from ..files import write_json
from ..state import StateError

# Histogram bins are spaced like float32 numbers with 14 bits of mantissa, from 2^-12 to 2^12 (a prior can make scores large).
MANTISSA_BITS = 14
LOWEST_EXPONENT, HIGHEST_EXPONENT = -12, 12
SHIFT = 23 - MANTISSA_BITS
FIRST_BIN = (127 + LOWEST_EXPONENT) << MANTISSA_BITS
BINS = (HIGHEST_EXPONENT - LOWEST_EXPONENT) << MANTISSA_BITS


class ConfidenceHistograms:
    """For each class the confidences of the pixels predicted as it, of any number of images in constant memory (90 MB).

    A threshold read from it is a confidence that occurred, at most a factor 1 + 2^-14 (6e-5) from the exact one; where a bin
    holds one value, which it does for small data, it is the exact one.

    Args:
        every: of each class's pixels in an image, in row-major order, every so many-th counts.
    """

    def __init__(self, num_classes: int, every: int = 4, device: torch.device | str = "cpu") -> None:
        self.every = every
        self.counts = torch.zeros(num_classes, BINS, dtype=torch.int64, device=device)
        self.smallest = torch.full((num_classes, BINS), torch.inf, device=device)
        self.pixels = torch.zeros(num_classes, dtype=torch.int64, device=device)

    def add(self, confidence: Tensor, predicted: Tensor) -> None:
        """Count an image.

        Args:
            confidence: (H,W) float32, the highest of a pixel's scores: probabilities, or their product with a prior.
            predicted: (H,W) uint8, the class that has it.
        """
        ordered, pixels = predicted.flatten().sort(stable=True)
        sizes = torch.bincount(ordered, minlength=len(self.pixels))
        self.pixels += sizes
        first = sizes.cumsum(0) - sizes
        place = torch.arange(len(ordered), device=ordered.device) - first.repeat_interleave(sizes, output_size=len(ordered))
        chosen = place % self.every == 0
        values = confidence.flatten()[pixels[chosen]]
        bins = ((values.view(torch.int32) >> SHIFT) - FIRST_BIN).clamp(0, BINS - 1)
        cells = ordered[chosen].long() * BINS + bins
        self.counts.view(-1).scatter_add_(0, cells, torch.ones_like(cells))
        self.smallest.view(-1).scatter_reduce_(0, cells, values, "amin")

    def reduce(self) -> "ConfidenceHistograms":
        """The sum over all processes."""
        self.counts, self.pixels = sum_across_processes(self.counts), sum_across_processes(self.pixels)
        if world_size() > 1:
            torch.distributed.all_reduce(self.smallest, torch.distributed.ReduceOp.MIN)
        return self

    def sizes(self) -> Tensor:
        """How many confidences were counted for each class, (C) int64 on the CPU."""
        return self.counts.sum(1).cpu()

    def kth_largest(self, k: int, c: int | None = None) -> float:
        """The k-th largest confidence (k from 1) of class `c`, or of all classes together."""
        counts, smallest = (self.counts[c], self.smallest[c]) if c is not None else (self.counts.sum(0), self.smallest.amin(0))
        from_top = counts.flip(0).cumsum(0)
        return smallest.flip(0)[int((from_top < k).sum())].item()


def most_likely(bands: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """The highest of a pixel's scores (H,W) and the class that has it, (H,W) uint8, from bands of scores (C,rows,W)."""
    confidences, predicted = zip(*map(highest, bands), strict=True)
    return torch.cat(confidences), torch.cat(predicted)


def class_thresholds(histograms: ConfidenceHistograms, portion: float, zeros: int = 0) -> Tensor:
    """t_c of CBST: the confidence that `portion` of a class's pixels reach; 1.0 where that is no pixel.

    Args:
        zeros: so many confidences of 0 are counted for each class (the MXNet original begins its lists with one).

    Returns (C) float32.
    """
    thresholds = torch.ones(len(histograms.counts))
    for c, size in enumerate(histograms.sizes().tolist()):
        k = int((size + zeros) * portion) if size else 0
        if k > 0:
            thresholds[c] = _positive(histograms.kth_largest(k, c) if k <= size else 0.0)
    return thresholds


def global_threshold(histograms: ConfidenceHistograms, portion: float, zeros: int = 0) -> Tensor:
    """One threshold for all classes (ST): the confidence that `portion` of all pixels reach, (C) float32 all equal.

    Args:
        zeros: so many confidences of 0 are counted for each class, and so many for all together.
    """
    size, num_classes = int(histograms.sizes().sum()), len(histograms.counts)
    k = int((size + zeros * (num_classes + 1)) * portion)
    value = histograms.kth_largest(k) if 0 < k <= size else 0.0
    return torch.full((num_classes,), _positive(value))


def _positive(threshold: float) -> float:
    # 0 stands for "no threshold" in the originals, which take 1 then.
    return threshold if threshold > 0 else 1.0


# By the names of --kc-policy.
POLICIES = {"cb": class_thresholds, "global": global_threshold}


@dataclasses.dataclass(frozen=True)
class ClassReport:
    """What the predictions of a round say of each class: its threshold, and whether crops look for it.

    Attributes:
        portion: of the target's pixels, that thresholds were chosen for.
        thresholds: t_c of each class.
        pixels_predicted: how many pixels were predicted as each class.
        rare, priority: ids of the classes that crops look for; those of `priority` come first where an image has them.
    """

    portion: float
    thresholds: list[float]
    pixels_predicted: list[int]
    rare: list[int]
    priority: list[int]

    def write(self, path: str) -> None:
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: str) -> "ClassReport":
        """Read what `write` wrote.

        Raises:
            StateError: the file is damaged; the message names it.
        """
        try:
            with open(path, encoding="utf-8") as file:
                report = cls(**json.load(file))
            lists = (report.thresholds, report.pixels_predicted, report.rare, report.priority)
            numbers = [report.portion, *(number for each in lists for number in each)]
            if not all(isinstance(number, int | float) for number in numbers):
                raise TypeError("not all of it are numbers")
        except (ValueError, TypeError, RecursionError) as error:
            raise StateError(f"{path}: a damaged report of the classes ({error}); remove it and go on with --resume") from error
        return report
