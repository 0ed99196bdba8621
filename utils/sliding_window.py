"""Prediction of images that are larger than the device's memory: windows that overlap, and whose scores are blended."""

from collections.abc import Callable

import torch
from torch import Tensor


def predict_windows(
    predict: Callable[[Tensor], Tensor], images: Tensor, window: tuple[int, int], overlap: float, device: torch.device
) -> Tensor:
    """Scores (1,C,H,W) float32 on the CPU of one image, from windows of it.

    Where windows overlap, their scores are averaged with weights that fall off towards a window's edges, where it sees
    little of the surroundings. The image and the result stay on the CPU: the device's memory has to hold one window at a time.

    Args:
        predict: from a window (1,3,h,w) on the device to its scores (1,C,h,w).
        images: (1,3,H,W) uint8.
        window: (height, width); an image that is smaller in a direction is one window there.
        overlap: the least part of a window, 0..0.9, that it shares with the next one.
    """
    height, width = images.shape[-2:]
    size = min(window[0], height), min(window[1], width)
    weight = (_ramp(size[0], overlap)[:, None] * _ramp(size[1], overlap)).float()
    total, weights = None, torch.zeros(height, width)
    for top in starts(height, size[0], overlap):
        for left in starts(width, size[1], overlap):
            place = ..., slice(top, top + size[0]), slice(left, left + size[1])
            scores = predict(images[place].to(device)).float().cpu()
            if total is None:
                total = torch.zeros(1, scores.shape[1], height, width)
            total[place] += weight * scores
            weights[place] += weight
    assert total is not None  # there is always a window
    return total.div_(weights)


def starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows of a length begin: evenly spaced, the first at 0, the last ends at `length`."""
    if window >= length:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    count = -(-(length - window) // step) + 1
    return [round(number * (length - window) / (count - 1)) for number in range(count)]


def _ramp(length: int, overlap: float) -> Tensor:
    """Weights (length,) float64 that rise from the edges over the overlap to 1, and are nowhere 0."""
    rise = max(1, int(length * overlap))
    distance = torch.arange(1, length + 1, dtype=torch.float64)
    return torch.minimum(distance, distance.flip(0)).clamp(max=rise) / rise
