"""Self-training's resizing and crops, around rare classes if there are any.

All are called as those in `dataset.transforms`: `transform(image, label, rng, batch_rng)`, here with labels of train ids.
"""

import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dataset.catalogue import IGNORED
from dataset.resizing import nearest_positions, resize_by, resize_picture

# A window that was drawn for a `ScaledCrop`: scale factor, top, left, and whether it is mirrored.
Window = tuple[float, int, int, bool]

# ImageNet's mean colour: what is 0 after normalisation. CBST's canvas has it cut down to whole numbers, CRST pads with 0.
MEAN_COLOUR = (124, 116, 104)
CANVAS_COLOUR = (123, 116, 103)


class ScaleImage:
    """CRST's resizing for prediction: the image by a factor, bilinear as OpenCV computes it; the label keeps its size."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(
        self, image: Tensor, label: Tensor | None, rng: random.Random | None, batch_rng: random.Random | None
    ) -> tuple[Tensor, Tensor | None]:
        return resize_by(image, self.factor), label


class ScaledCrop:
    """CRST's augmentation: scale in steps of 0.1, crop of (W,H) (with a chance around a rare class), mirror.

    An image that is too small is padded right and below: with the mean colour, and ignored pixels.

    Args:
        scales: (low, high), or None to keep the size.
        rare: ids of the classes to look for; with probability `chance` the crop is centred on a pixel of one of them.
    """

    label_stride = 1  # of labels to images

    def __init__(
        self,
        size: tuple[int, int],
        scales: tuple[float, float] | None = (0.5, 1.5),
        mirror: bool = True,
        rare: Sequence[int] = (),
        chance: float = 0.8,
    ) -> None:
        self.width, self.height = size
        self.scales, self.mirror, self.rare, self.chance = scales, mirror, rare, chance

    def __call__(
        self, image: Tensor, label: Tensor, rng: random.Random, batch_rng: random.Random | None
    ) -> tuple[Tensor, Tensor]:
        window, label = self.choose(label, rng)
        return self.cut_image(image, window), label

    def choose(self, label: Tensor, rng: random.Random) -> tuple[Window, Tensor]:
        """Draw a window for an image with this label; return it and the label in it."""
        factor = 1.0
        if self.scales is not None:
            low, high = self.scales
            factor = low + rng.randint(0, int((high - low) * 10 + 1e-9)) / 10
        scaled = label[tuple(torch.meshgrid(*(nearest_positions(side, factor) for side in label.shape), indexing="ij"))]
        rows, columns = (max(0, need - have) for need, have in zip((self.height, self.width), scaled.shape, strict=True))
        scaled = F.pad(scaled, (0, columns, 0, rows), value=IGNORED)
        top, left = self._corner(scaled, rng)
        mirrored = self.mirror and rng.randint(0, 1) == 0
        cut = scaled[top : top + self.height, left : left + self.width]
        return (factor, top, left, mirrored), cut.flip(-1) if mirrored else cut

    def _corner(self, label: Tensor, rng: random.Random) -> tuple[int, int]:
        spare = label.shape[0] - self.height, label.shape[1] - self.width
        if self.rare and rng.uniform(0, 1) < self.chance:
            present = [c for c in self.rare if (label == c).any()]
            if present:
                pixels = (label == present[rng.randint(0, len(present) - 1)]).nonzero()
                y, x = pixels[rng.randint(0, len(pixels) - 1)].tolist()
                return min(max(y - self.height // 2, 0), spare[0]), min(max(x - self.width // 2, 0), spare[1])
        return rng.randint(0, spare[0]), rng.randint(0, spare[1])

    def cut_image(self, image: Tensor, window: Window) -> Tensor:
        """The window of a (3,h,w) uint8 image."""
        return self._cut(image, window, torch.tensor(MEAN_COLOUR, dtype=torch.uint8))

    def cut_soft(self, soft: Tensor, label: Tensor, window: Window) -> Tensor:
        """The window of soft labels (C,h,w), brought to sum 1 again, and 0 where the cut-out `label` is ignored."""
        cut = self._cut(soft, window, torch.zeros(len(soft)))
        cut = cut / cut.sum(0).clamp(min=1e-12)
        return cut * (label != IGNORED)

    def _cut(self, image: Tensor, window: Window, fill: Tensor) -> Tensor:
        factor, top, left, mirrored = window
        sides = zip((top, left), (self.height, self.width), image.shape[1:], strict=True)
        height, width = (min(corner + side, round(whole * factor)) - corner for corner, side, whole in sides)
        part = resize_by(image, factor, (top, left, height, width))
        result = fill[:, None, None].expand(-1, self.height, self.width).clone()
        result[:, :height, :width] = part
        return result.flip(-1) if mirrored else result


class CanvasCrop:
    """CBST's augmentation: a square window of the image on a canvas of mean colour, resized to T x T; labels at stride 8.

    Args:
        crop: T, a multiple of 8.
        scales: (low, high) of the drawn size as a share of `origin`.
        origin, max_side: the longer side that sizes are drawn around, and the longest side of the data set's images.
        priority, rare: ids to centre the window on with probability `chance`: those of `priority` that are there, else `rare`.
    """

    label_stride = 8

    def __init__(
        self,
        crop: int,
        scales: tuple[float, float],
        origin: int,
        max_side: int,
        priority: Sequence[int] = (),
        rare: Sequence[int] = (),
        chance: float = 0.8,
    ) -> None:
        self.crop, self.scales, self.origin, self.max_side = crop, scales, origin, max_side
        self.priority, self.rare, self.chance = priority, rare, chance

    def __call__(
        self, image: Tensor, label: Tensor, rng: random.Random, batch_rng: random.Random | None
    ) -> tuple[Tensor, Tensor]:
        low, high = self.scales
        rate = rng.randint(int(low * self.origin), int(high * self.origin)) / self.max_side
        side, stride = int(self.crop / rate), 8 / rate
        border = max(1, int(stride // 2))
        top, left = self._corner(label, side, stride, border, rng)
        image = self._window(image, top, left, side, torch.tensor(CANVAS_COLOUR, dtype=torch.uint8))
        label = self._window(label[None], top, left, side, torch.tensor([IGNORED], dtype=torch.uint8))[0]
        image = resize_picture(image, (self.crop, self.crop))
        resized = np.array(Image.fromarray(label.numpy()).resize((self.crop, self.crop), Image.Resampling.NEAREST))
        label = torch.from_numpy(resized[4::8, 4::8].copy())
        if rng.randint(0, 1) == 0:
            image, label = image.flip(-1), label.flip(-1)
        return image, label

    def _corner(self, label: Tensor, side: int, stride: float, border: int, rng: random.Random) -> tuple[int, int]:
        """Top and left of the window, relative to the image (the canvas begins `border` pixels before it)."""
        height, width = label.shape
        if rng.random() < self.chance:
            half = side // 2
            inner = label[half : max(half, height - half - 1), half : max(half, width - half - 1)]
            present = [c for c in self.priority if (inner == c).any()] or [c for c in self.rare if (inner == c).any()]
            if present:
                # Whole numbers from the draw, as the original takes them.
                pixels = (inner == present[min(int(rng.uniform(0, len(present))), len(present) - 1)]).nonzero()
                top, left = pixels[rng.randint(0, len(pixels) - 1)].tolist()
                return top, left
        top, left = (rng.randint(0, int(max(1, stride, border + have - side + 1)) - 1) - border for have in (height, width))
        return top, left

    @staticmethod
    def _window(planes: Tensor, top: int, left: int, side: int, fill: Tensor) -> Tensor:
        result = fill[:, None, None].expand(-1, side, side).clone()
        height, width = planes.shape[1:]
        y, x = max(0, top), max(0, left)
        part = planes[:, y : min(height, top + side), x : min(width, left + side)]
        result[:, y - top : y - top + part.shape[1], x - left : x - left + part.shape[2]] = part
        return result
