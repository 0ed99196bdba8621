"""Which checkpoint to take without target labels: criteria on what a network predicts on target images.

P is the matrix of probabilities, a row for each of N pixels, a column for each of C classes. Pixels are those of the network's
own output, 1/8 of the input: upsampling would only repeat what they say.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .confusion import ConfusionMatrix
from .iou import mean_iou

# Of soft neighbourhood density, as in its paper.
TEMPERATURE = 0.05
ENSEMBLE = "EnsV"


class SampledPixels:
    """Which pixels of which images are compared with each other, the same ones for every checkpoint.

    Args:
        images: how many images there are.
        count: how many pixels are drawn from all of them together.
        seed: of the draw.
    """

    def __init__(self, images: int, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.image = torch.randint(images, (count,), generator=generator)
        self.place = torch.rand(count, 2, generator=generator)

    def of(self, image: int, probability: Tensor) -> Tensor:
        """The rows (k,C) of P that are drawn from image number `image`, of its probabilities (C,h,w)."""
        height, width = probability.shape[1:]
        place = self.place[self.image == image].to(probability.device)
        return probability[:, (place[:, 0] * height).long(), (place[:, 1] * width).long()].T


class PredictionStatistics:
    """What the criteria need of one checkpoint's P, summed up image by image; its size does not depend on how many there are.

    Attributes:
        pixels: N.
        total: (C,) float64, the sum of P's rows.
        entropy: the sum over pixels of -sum_c p log p, in nats.
        correlation: (C,C) float64, P'P.
    """

    def __init__(self, num_classes: int, sampled: SampledPixels, device: torch.device | str = "cpu") -> None:
        self.sampled, self.pixels, self.entropy = sampled, 0, 0.0
        self.total = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self.correlation = torch.zeros(num_classes, num_classes, dtype=torch.float64, device=device)
        self._rows: list[Tensor] = []

    def add(self, image: int, probability: Tensor) -> None:
        """Count the probabilities (C,h,w) of image number `image`."""
        rows = probability.flatten(1).double()
        self.pixels += rows.shape[1]
        self.total += rows.sum(1)
        self.entropy += float(torch.special.entr(rows).sum())
        self.correlation += rows @ rows.T
        self._rows.append(self.sampled.of(image, probability))

    @property
    def samples(self) -> Tensor:
        """(k,C) rows of P, those of the sampled pixels."""
        return torch.cat(self._rows)


def mean_entropy(statistics: PredictionStatistics) -> float:
    """Mean of -sum_c p log p over pixels, in nats, 0..log C; lower is better (Morerio et al., ICLR 2018, 1711.10288)."""
    return statistics.entropy / statistics.pixels


def information_maximisation(statistics: PredictionStatistics) -> float:
    """H(mean p) - mean H(p) in nats, 0..log C; higher is better: certain pixels, all classes used.

    Musgrave et al., 2208.07360, section 2.
    """
    diversity = torch.special.entr(statistics.total / statistics.pixels).sum()
    return float(diversity) - mean_entropy(statistics)


def soft_neighbourhood_density(statistics: PredictionStatistics) -> float:
    """Mean entropy of a pixel's similarities to all other sampled pixels, in nats; higher is better (Saito et al., ICCV 2021,
    2108.10860, equations 2-4).

    Similarities are cosines of rows of P, made a distribution by a softmax with temperature 0.05 that leaves out the pixel
    itself. The paper compares probabilities; EnsV's published code compares logits instead.
    """
    rows = F.normalize(statistics.samples)
    similarity = rows @ rows.T / TEMPERATURE
    similarity.fill_diagonal_(-math.inf)
    return float(torch.special.entr(similarity.softmax(1)).sum(1).mean())


def class_correlation(statistics: PredictionStatistics) -> float:
    """Corr-C: trace(P'P) / |P'P|_F, 1..sqrt(C); higher is better (Tu et al., SoftmaxCorr, 2406.09908).

    It is sqrt(C) times the cosine between P'P and the identity, which the paper reports: the largest value belongs to certain
    predictions that use all classes alike. EnsV's published code notes "min is best" beside the same formula; the paper's sign
    is taken here.
    """
    return float(statistics.correlation.trace() / statistics.correlation.norm())


def nuclear_norm(statistics: PredictionStatistics) -> float:
    """|P|_* / N, the sum of P's singular values; higher is better (Deng et al., ICML 2023, 2302.01094, who divide by a bound
    that depends on N and C alone).

    The singular values of P are the square roots of the eigenvalues of P'P, so P itself is never kept.
    """
    eigenvalues = torch.linalg.eigvalsh(statistics.correlation)
    return float(eigenvalues.clamp(min=0).sqrt().sum()) / statistics.pixels


class Criterion(NamedTuple):
    """What it makes of a checkpoint's statistics, and which value is the best: `max` or `min`."""

    value: Callable[[PredictionStatistics], float]
    best: Callable[..., str]


CRITERIA = {
    "information maximisation": Criterion(information_maximisation, max),
    "SND": Criterion(soft_neighbourhood_density, max),
    "Corr-C": Criterion(class_correlation, max),
    "nuclear norm": Criterion(nuclear_norm, max),
    "entropy": Criterion(mean_entropy, min),
}


class Ensemble:
    """EnsV: how far each checkpoint agrees with the mean of all (Hu et al., NeurIPS 2024, Datasets and Benchmarks).

    The mean is known only when the last checkpoint is through, and neither all networks nor all predictions fit in memory. So
    each image has two files in `folder`: the sum of probabilities so far, and every checkpoint's argmax, one byte a pixel. One
    network is in memory at a time, each image is predicted once by each, and the mean is exact.
    """

    def __init__(self, folder: str, num_classes: int) -> None:
        self.folder, self.num_classes = folder, num_classes

    def add(self, image: int, probability: Tensor) -> None:
        """The next checkpoint's probabilities (C,h,w) of image number `image`.

        Raises:
            ValueError: an earlier checkpoint's were of another size.
        """
        total, ids = self._paths(image)
        values = probability.float().cpu().numpy()
        if os.path.exists(total):
            before = np.load(total)
            if before.shape != values.shape:
                raise ValueError(f"probabilities of shape {values.shape} after some of shape {before.shape}")
            values = before + values
        np.save(total, values)
        with open(ids, "ab") as file:
            file.write(probability.argmax(0).to(torch.uint8).cpu().numpy().tobytes())

    def agreement(self, images: int, checkpoints: int) -> list[float]:
        """For each checkpoint the mIoU of argmax p_k against argmax of the mean over all checkpoints, 0..1; higher is better.

        The paper's accuracy becomes mIoU here, the usual score of segmentation: or else road and sky would decide.
        """
        confusions = [ConfusionMatrix(self.num_classes) for _ in range(checkpoints)]
        for image in range(images):
            total, ids = self._paths(image)
            role_model = torch.from_numpy(np.load(total).argmax(0).astype(np.uint8))
            predictions = torch.from_numpy(np.fromfile(ids, np.uint8)).view(checkpoints, *role_model.shape)
            for confusion, prediction in zip(confusions, predictions, strict=True):
                confusion.add(role_model, prediction)
        return [mean_iou(confusion.matrix) for confusion in confusions]

    def _paths(self, image: int) -> tuple[str, str]:
        return os.path.join(self.folder, f"{image}_sum.npy"), os.path.join(self.folder, f"{image}_ids")


def choices(values: dict[str, dict[str, float]]) -> dict[str, str]:
    """The checkpoint that each criterion takes, of {criterion: {checkpoint: value}}; of equal ones the first."""
    best = {name: criterion.best for name, criterion in CRITERIA.items()} | {ENSEMBLE: max}
    return {name: best[name](found, key=found.__getitem__) for name, found in values.items()}


def regrets(choice: dict[str, str], miou: dict[str, float]) -> dict[str, float]:
    """How much mIoU each choice loses against the best checkpoint."""
    highest = max(miou.values())
    return {name: highest - miou[checkpoint] for name, checkpoint in choice.items()}


def unique_names(paths: Sequence[str]) -> list[str]:
    """Checkpoints by the names of their files, or where two have the same one, by their paths; always without the ending."""
    stems = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    return stems if len(set(stems)) == len(stems) else [os.path.splitext(path)[0] for path in paths]
