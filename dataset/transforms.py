"""Resizing and augmentation of one sample.

A transform is called as `transform(image, label, rng, batch_rng)`: image (3,H,W) uint8, label (H,W) uint8 or None, and two
generators with the interface of `random.Random`; all draws come from them, in the originals' order. `batch_rng` is the same for
all samples of a step, for what a batch has to share. It returns (image, label).
"""

from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn.functional import pad

from .catalogue import IGNORED, fitted_size
from .resizing import resize_image, resize_label

Sample = tuple[Tensor, Tensor | None]
Transform = Callable[[Tensor, Tensor | None, Random, Random], Sample]


class Compose:
    """Transforms one after the other."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = transforms

    def __call__(self, image: Tensor, label: Tensor | None, rng: Random, batch_rng: Random) -> Sample:
        for transform in self.transforms:
            image, label = transform(image, label, rng, batch_rng)
        return image, label


class Resize:
    """Resize to (W,H) without keeping the aspect: image by `mode` (bicubic or bilinear), label nearest.

    With `label=False` the label keeps its size, for scoring at full resolution.
    """

    def __init__(self, size: tuple[int, int], label: bool = True, mode: str = "bicubic") -> None:
        self.size, self.label, self.mode = (size[1], size[0]), label, mode

    def __call__(self, image: Tensor, label: Tensor | None, rng: Random, batch_rng: Random) -> Sample:
        return resize_image(image, self.size, self.mode), resize_label(label, self.size) if self.label else label


class FitWithin:
    """Resize an image, as far as it is larger, so that its longer side is `longest`; its shape stays, up to multiples of 8."""

    def __init__(self, longest: int) -> None:
        self.longest = longest

    def __call__(self, image: Tensor, label: Tensor | None, rng: Random, batch_rng: Random) -> Sample:
        height, width = image.shape[1:]
        width, height = fitted_size((width, height), self.longest)
        return resize_image(image, (height, width)), label


class RandomMirror:
    """Mirror image and label left-right if a draw is below `p`."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, image: Tensor, label: Tensor | None, rng: Random, batch_rng: Random) -> Sample:
        if rng.random() < self.p:
            image, label = image.flip(-1), None if label is None else label.flip(-1)
        return image, label


class ImageScale:
    """Resize the image to `factor` times (W,H), the label to (W,H).

    The logits are upsampled to (W,H), so this changes the resolution of the input.
    """

    def __init__(self, size: tuple[int, int], factor: float) -> None:
        self.width, self.height = size
        self.factor = factor

    def __call__(self, image: Tensor, label: Tensor | None, rng: Random, batch_rng: Random) -> Sample:
        scaled = int(self.height * self.factor), int(self.width * self.factor)
        return resize_image(image, scaled), resize_label(label, (self.height, self.width))


class RandomImageScale:
    """CLAN's scaling: `ImageScale` by 1.1, 0.8 or 1 with probability 0.3, 0.3, 0.4.

    One draw for the whole batch, whose images need one size (with batch size 1 that is the original).
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, image: Tensor, label: Tensor | None, rng: Random, batch_rng: Random) -> Sample:
        draw = batch_rng.random()
        factor = 1.1 if draw > 0.7 else 0.8 if draw < 0.3 else 1
        return ImageScale(self.size, factor)(image, label, rng, batch_rng)


class RandomBlur:
    """MaxSquare's blur: with probability 0.5 a Gaussian blur of the image, radius drawn from [0, 1) pixels (Pillow's)."""

    def __call__(self, image: Tensor, label: Tensor | None, rng: Random, batch_rng: Random) -> Sample:
        if rng.random() < 0.5:
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            blurred = picture.filter(ImageFilter.GaussianBlur(radius=rng.random()))
            image = torch.from_numpy(np.array(blurred)).permute(2, 0, 1)
        return image, label


class RandomColorJitter:
    """FADA's jitter: brightness, contrast, saturation and hue change by random amounts, in random order.

    Args:
        strengths: (brightness, contrast, saturation, hue); the first three are factors from [1 - s, 1 + s], hue is turned by
            [-h, h] of a full circle. Pillow's arithmetic, as the original's.
    """

    def __init__(self, strengths: tuple[float, float, float, float]) -> None:
        self.strengths = strengths

    def __call__(self, image: Tensor, label: Tensor | None, rng: Random, batch_rng: Random) -> Sample:
        *strengths, hue = self.strengths
        order = rng.sample(range(4), 4)
        factors = [rng.uniform(max(0.0, 1 - strength), 1 + strength) for strength in strengths]
        factors.append(rng.uniform(-hue, hue))
        used = [index for index in order if self.strengths[index] > 0]  # even hue 0 would round the colours
        return (jitter(image, used, factors) if used else image), label


class RandomScale:
    """Resize image and label by one factor from [low, high]."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, image: Tensor, label: Tensor | None, rng: Random, batch_rng: Random) -> Sample:
        factor = self.low + (self.high - self.low) * rng.random()
        size = int(image.shape[1] * factor), int(image.shape[2] * factor)
        return resize_image(image, size), resize_label(label, size)


class RandomCrop:
    """A random window of (W,H). What an image lacks in width or height is added on both sides, as black and ignored pixels
    (twice as much as needed, as in FADA's code; never with its published sizes)."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.width, self.height = size

    def __call__(self, image: Tensor, label: Tensor | None, rng: Random, batch_rng: Random) -> Sample:
        columns, rows = max(0, self.width - image.shape[2]), max(0, self.height - image.shape[1])
        if columns or rows:
            padding = (columns, columns, rows, rows)
            image, label = pad(image, padding), None if label is None else pad(label, padding, value=IGNORED)
        top, left = 0, 0
        if image.shape[1:] != (self.height, self.width):
            top = rng.randint(0, image.shape[1] - self.height)
            left = rng.randint(0, image.shape[2] - self.width)
        window = slice(top, top + self.height), slice(left, left + self.width)
        return image[:, *window], None if label is None else label[window]


def jitter(image: Tensor, order: Sequence[int], factors: Sequence[float]) -> Tensor:
    """Adjust a (3,H,W) uint8 image: `factors` of brightness, contrast, saturation and hue, applied in `order` (of 0..3)."""
    from torchvision.transforms.v2 import functional as F  # slow to import, and only FADA needs it

    adjustments = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    for index in order:
        picture = adjustments[index](picture, factors[index])
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
