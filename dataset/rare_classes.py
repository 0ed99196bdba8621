"""Rare class sampling (DAFormer, Hoyer et al., CVPR 2022, 2111.14887, section 3.2): source images by the classes in them."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .class_statistics import StatisticsError, label_name
from .segmentation import SegmentationDataset
from .transforms import Transform

IDS = 256  # of uint8 labels
MOST_CROPS = 11
SHARE_IN_CROP = 0.5  # of the pixels that an image must have of its class, the crop has more


def class_probabilities(pixels: Sequence[int] | np.ndarray, temperature: float) -> np.ndarray:
    """How likely each class is drawn: softmax((1 - f) / T), f being its share of all pixels; 0 for classes without any."""
    counts = np.asarray(pixels, np.float64)
    exponents = np.where(counts > 0, (1 - counts / counts.sum()) / temperature, -np.inf)
    weights = np.exp(exponents - exponents.max())
    return weights / weights.sum()


class RareClassSampling(Dataset):
    """Crops of a data set's images, chosen by their classes: a class by `class_probabilities`, any image that has more than
    `min_pixels` of it, and the first of eleven crops with more than half of `min_pixels` (or else the eleventh).

    An index means an image and the class that it was chosen for: take them from `order`. Classes that no image has enough of
    are `left_out`; the original stops there.

    Args:
        dataset: its images as they are to be cropped.
        crop: draws a crop.
        pixels: {label's name: pixels of each class}, see `dataset.class_statistics.read_pixels`.
        temperature: T; the smaller, the more often rare classes.
        min_pixels: counted in the label file, before it is resized.

    Raises:
        StatisticsError: `pixels` lacks an image, or no image has enough pixels of any class.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        crop: Transform,
        pixels: Mapping[str, Sequence[int]],
        temperature: float,
        min_pixels: int = 3000,
    ) -> None:
        self.dataset, self.crop, self.min_pixels = dataset, crop, min_pixels
        names = [label_name(record) for record in dataset.records]
        missing = [name for name in names if name not in pixels]
        if missing:
            raise StatisticsError(
                f"the class statistics lack {len(missing)} of {len(names)} images, first {missing[0]}; make them anew with "
                "scripts/class_statistics.py"
            )
        counts = np.array([pixels[name] for name in names])
        enough = counts > min_pixels
        probabilities = class_probabilities(counts.sum(0), temperature) * enough.any(0)
        if not probabilities.any():
            raise StatisticsError(f"no image has more than {min_pixels} pixels of any class; ask for fewer")
        self.classes = np.flatnonzero(probabilities).tolist()
        self.weights = probabilities[self.classes].tolist()
        self.images = {c: np.flatnonzero(enough[:, c]).tolist() for c in self.classes}
        self.left_out = np.flatnonzero((counts.sum(0) > 0) & ~enough.any(0)).tolist()

    def __len__(self) -> int:
        return len(self.dataset)

    def order(self, seed: int) -> "RareClassOrder":
        """An endless order of indices."""
        return RareClassOrder(self, seed)

    def path(self, index: int) -> str:
        """The file of an image."""
        return self.dataset.path(index // IDS)

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Any]:
        index, seed, batch_seed = key
        image_index, chosen = divmod(index, IDS)
        sample = self.dataset[image_index, seed, batch_seed]
        image, label = sample["image"], sample["label"]
        rng, batch_rng = random.Random(seed), random.Random(batch_seed)
        for _ in range(MOST_CROPS):
            sample["image"], sample["label"] = self.crop(image, label, rng, batch_rng)
            if (sample["label"] == chosen).sum() > self.min_pixels * SHARE_IN_CROP:
                break
        return {**sample, "image": sample["image"].contiguous(), "label": sample["label"].contiguous()}


class RareClassOrder:
    """`order[k]` is index k of an endless stream, a pure function of the seed and k."""

    def __init__(self, sampling: RareClassSampling, seed: int) -> None:
        self.sampling, self.seed = sampling, seed

    def __getitem__(self, k: int) -> int:
        rng = random.Random(f"{self.seed} {k}")
        (chosen,) = rng.choices(self.sampling.classes, self.sampling.weights)
        return rng.choice(self.sampling.images[chosen]) * IDS + chosen
