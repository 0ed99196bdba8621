"""How the MXNet CBST predicts: images fitted to a longer side, probabilities at 1/8 of the input, bicubic interpolation."""

import random
from collections.abc import Iterator
from functools import lru_cache

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dataset.resizing import pillow_filter, pillow_weights, resize_picture
from model.segmenter import Segmenter

from .interpolation import bands, product


class FitLongerSide:
    """A transform: the image's longer side becomes `length`, with Pillow's filter by whether it grows; labels stay."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(
        self, image: Tensor, label: Tensor | None, rng: random.Random | None, batch_rng: random.Random | None
    ) -> tuple[Tensor, Tensor | None]:
        height, width = image.shape[1:]
        factor = self.length / max(height, width)
        size = tuple(self.length if side == max(height, width) else round(side * factor) for side in (height, width))
        return resize_picture(image, size), label


class CoarseProbabilities:
    """Probabilities at 1/8 of the input, averaged with the mirror image's, then interpolated with bicubic weights.

    They are neither normalised again nor clipped: overshoot gives scores below 0 and above 1, as in the original.

    Args:
        flip: average with the mirror image.
        steps: 1, 2 or 4. With 2 or 4 maps are so many times as fine: that many passes in each direction, over shifted images.
    """

    def __init__(self, flip: bool = True, steps: int = 1) -> None:
        self.flip, self.steps = flip, steps

    def maps(self, model: Segmenter, images: Tensor) -> Tensor:
        """Images (1,3,h,w) uint8 to one map (1,C,steps*ceil(h/8),steps*ceil(w/8))."""
        images, stride = model.normalize(images), 8 // self.steps
        height, width = images.shape[-2:]
        around = F.pad(images, (4, 4, 4, 4))
        rows = []
        for top in range(stride // 2, 8, stride):
            windows = [around[..., top : top + height, left : left + width] for left in range(stride // 2, 8, stride)]
            rows.append(torch.stack([self._probability(model, window) for window in windows], dim=-1).flatten(-2))
        return torch.stack(rows, dim=-2).flatten(-3, -2)

    def _probability(self, model: Segmenter, images: Tensor) -> Tensor:
        """Normalised images (1,3,h,w), padded with 0 to multiples of 8, to (1,C,ceil(h/8),ceil(w/8))."""
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % 8, 0, -height % 8))
        probability = F.softmax(model(padded)[-1].float(), dim=1)
        if self.flip:
            probability = 0.5 * (probability + F.softmax(model(padded.flip(-1))[-1].float(), dim=1).flip(-1))
        return probability

    def bands(self, maps: Tensor, size: tuple[int, int], shape: tuple[int, int]) -> Iterator[Tensor]:
        """Maps to scores (C,rows,W) at `size` (H,W), from top to bottom.

        Args:
            shape: (h,w) of the resized image, without the padding.
        """
        rows, columns = _weights(tuple(maps.shape[-2:]), 8 // self.steps, shape, size)
        return bands(product(maps[0], columns.T.to(maps.device, non_blocking=True)), rows)

    def scores(self, maps: Tensor, size: tuple[int, int], shape: tuple[int, int]) -> Tensor:
        """All of `bands`: (C,H,W)."""
        return torch.cat(list(self.bands(maps, size, shape)), dim=1)


@lru_cache(8)
def _weights(map_size: tuple[int, int], stride: int, shape: tuple[int, int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What interpolates a map's rows, (H,h), and its columns, (W,w): to the padded image, cut to `shape`, then to `size`."""
    kind = pillow_filter(shape, size)
    both = []
    for length, cut, new_length in zip(map_size, shape, size, strict=True):
        weights = pillow_weights(length, stride * length, Image.Resampling.BICUBIC)[:cut]
        # Only the heights are compared, as in the original.
        if shape[0] != size[0]:
            weights = pillow_weights(cut, new_length, kind) @ weights
        both.append(weights.float())
    return both[0], both[1]


def predict_coarsely(model: Segmenter, images: Tensor, size: tuple[int, int], flip: bool = False, steps: int = 1) -> Tensor:
    """Scores (1,C,H,W) of one image (1,3,h,w) uint8 at output `size` (H,W); see `CoarseProbabilities` for the rest."""
    predictor = CoarseProbabilities(flip, steps)
    height, width = images.shape[-2:]
    return predictor.scores(predictor.maps(model, images), size, (height, width))[None]
