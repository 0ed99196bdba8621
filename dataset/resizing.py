"""Every way in which the originals resize images, labels and scores. Sizes are (H,W).

Images are (3,H,W) uint8, labels (H,W) uint8 ids. Most originals resize with Pillow, CRST with OpenCV, the
MXNet CBST with Pillow by a rule of its own; their numbers depend on it, so there is a function for each.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


def resize_image(image: Tensor, size: Sequence[int], mode: str = "bicubic") -> Tensor:
    """(3,h,w) uint8 to (3,H,W) uint8, bicubic or bilinear with antialiasing: at most 2 grey levels from the originals' Pillow,
    and faster.

    Both resize the rows first and round in between. Pillow 13 takes the columns first where the height shrinks more
    (never at published sizes), which differs by some levels at sharp edges.
    """
    if image.shape[1:] == tuple(size):
        return image
    return F.interpolate(image[None], size=tuple(size), mode=mode, antialias=True)[0]


@overload
def resize_label(label: Tensor, size: Sequence[int]) -> Tensor: ...
@overload
def resize_label(label: None, size: Sequence[int]) -> None: ...
def resize_label(label: Tensor | None, size: Sequence[int]) -> Tensor | None:
    """(h,w) uint8 ids to (H,W), nearest as Pillow rounds it (torchvision takes another pixel at ties); None stays None."""
    if label is None or label.shape == tuple(size):
        return label
    return torch.from_numpy(np.array(Image.fromarray(label.numpy()).resize((size[1], size[0]), Image.Resampling.NEAREST)))


def resize_by(image: Tensor, factor: float, window: tuple[int, int, int, int] | None = None) -> Tensor:
    """(C,h,w) resized by `factor` with bilinear weights at (x + 0.5) / factor - 0.5, as OpenCV does; only `window` of it.

    uint8 images are computed in OpenCV's fixed-point arithmetic (differences of at most 1 grey level), floats exactly.

    Args:
        window: (top, left, height, width) in the resized image, which is as large as round(side * factor); default: all.
    """
    if window is None:
        window = (0, 0, round(image.shape[1] * factor), round(image.shape[2] * factor))
    if factor == 1.0:
        return image[:, window[0] : window[0] + window[2], window[1] : window[1] + window[3]]
    (y0, y1, wy), (x0, x1, wx) = (_taps(image.shape[1 + axis], factor, window[axis], window[axis + 2]) for axis in (0, 1))
    first, last = int(y0.min()), int(y1.max()) + 1
    rows = image[:, first:last]
    if image.is_floating_point():
        rows = rows[:, :, x0] * (1 - wx) + rows[:, :, x1] * wx
        return rows[:, y0 - first] * (1 - wy)[:, None] + rows[:, y1 - first] * wy[:, None]
    wx, wy = ((weight * 2048).round().int() for weight in (wx, wy))
    rows = rows.int()
    rows = (rows[:, :, x0] * (2048 - wx) + rows[:, :, x1] * wx) >> 4
    above, below = rows[:, y0 - first] * (2048 - wy)[:, None] >> 16, rows[:, y1 - first] * wy[:, None] >> 16
    return ((above + below + 2) >> 2).to(torch.uint8)


def _taps(side: int, factor: float, start: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two source pixels and the second one's weight for `count` pixels of a resized axis from `start` on."""
    position = (torch.arange(start, start + count, dtype=torch.float64) + 0.5) * (1.0 / factor) - 0.5
    position = position.clamp(0, side - 1)
    lower = position.floor().long()
    return lower, (lower + 1).clamp(max=side - 1), (position - lower).float()


def nearest_positions(side: int, factor: float) -> Tensor:
    """The source position of each pixel of an axis resized by `factor` with the nearest pixel, as OpenCV takes it."""
    position = torch.arange(round(side * factor), dtype=torch.float64) * (1.0 / factor)
    return position.floor().long().clamp(max=side - 1)


def resize_picture(image: Tensor, size: Sequence[int]) -> Tensor:
    """(3,h,w) uint8 to (3,H,W) by Pillow: Lanczos if both sides shrink, bicubic if both grow, bilinear otherwise."""
    if tuple(image.shape[1:]) == tuple(size):
        return image
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    resized = picture.resize((size[1], size[0]), pillow_filter(image.shape[1:], size))
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def pillow_filter(size: Sequence[int], new_size: Sequence[int]) -> Image.Resampling:
    """CBST's rule for the filter of a resize between two (H,W)."""
    if all(new > old for old, new in zip(size, new_size, strict=True)):
        return Image.Resampling.BICUBIC
    if all(new < old for old, new in zip(size, new_size, strict=True)):
        return Image.Resampling.LANCZOS
    return Image.Resampling.BILINEAR


@lru_cache(8)
def pillow_weights(length: int, new_length: int, kind: Image.Resampling) -> Tensor:
    """(new_length, length) float64: Pillow's filter along one axis, as a matrix. Its way with floats is linear."""
    identity = Image.fromarray(np.eye(length, dtype=np.float32))
    return torch.from_numpy(np.array(identity.resize((length, new_length), kind))).double()
