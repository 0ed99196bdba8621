"""Colour jitter and blur for the images that a student learns from its teacher's labels, on the device for a whole batch.

The arithmetic is that of kornia in 2020, which DACS was published with (without the error of its HSV conversion): brightness is
added, contrast is multiplied without regard to the mean, saturation and hue are changed in HSV.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .mixing import uniform

STRENGTH = 0.25
HIGHEST_SIGMA = 1.15
LOWEST_SIGMA = 0.15
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def augment(images: Tensor, jitters: bool = True, blurs: bool = True, alike: bool = True) -> Tensor:
    """Jitter the colours of (N,3,H,W) float images in [0, 1] with probability 0.8, then blur them with 0.5.

    Args:
        jitters, blurs: False switches one of them off.
        alike: one decision for all images of the batch, as published; False: each image has its own. Strengths are always its
            own.
    """
    count, device = len(images), images.device
    decisions = torch.rand(2, 1, device=device) if alike else uniform(count, 2, device=device).T
    factors = uniform(count, 4, device=device)
    order = uniform(count, 4, device=device).argsort(1)
    sigma = uniform(count, device=device)
    if jitters:
        jittered = jitter(images, _jitter_factors(factors), order)
        images = torch.where((decisions[0] > 0.2)[:, None, None, None], jittered, images)
    if blurs:
        blurred = blur(images, LOWEST_SIGMA + (HIGHEST_SIGMA - LOWEST_SIGMA) * sigma)
        images = torch.where((decisions[1] > 0.5)[:, None, None, None], blurred, images)
    return images


def _jitter_factors(draws: Tensor) -> Tensor:
    """Draws (N,4) from [0, 1) to factors in 1 +- STRENGTH of brightness, contrast and saturation, and turns of the hue."""
    shift = STRENGTH * (2 * draws - 1)
    return torch.cat((1 + shift[:, :HUE], shift[:, HUE:]), dim=1)


def jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Change the colours of (N,3,H,W) images in [0, 1], each by its own factors in its own order.

    Args:
        factors: (N,4), of brightness, contrast and saturation (1 changes nothing) and the hue's turn (0 changes nothing).
        order: (N,4) permutations of these four, first to last.
    """
    for operation in order.unbind(1):
        brightness, contrast, saturation, hue = (
            torch.where(operation == which, factors[:, which], 0.0 if which == HUE else 1.0)[:, None, None, None]
            for which in (BRIGHTNESS, CONTRAST, SATURATION, HUE)
        )
        images = (images * contrast + (brightness - 1)).clamp(0, 1)
        images = _change_hsv(images, saturation[:, 0], hue[:, 0])
    return images


def _change_hsv(images: Tensor, saturation: Tensor, turn: Tensor) -> Tensor:
    """Multiply the saturation and turn the hue of (N,3,H,W) images by (N,1,1) factors and parts of a full turn."""
    red, green, blue = images.unbind(1)
    value, least = images.amax(1), images.amin(1)
    chroma = value - least
    divisor = chroma.clamp(min=1e-6)
    hue = torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    hue = torch.where(value == red, (green - blue) / divisor, hue) + 6 * turn
    chroma = value * (chroma / value.clamp(min=1e-6) * saturation).clamp(0, 1)
    # Each channel falls from `value` by `chroma` where the hue, in sixths of a turn, is far from its own.
    sixths = (hue[:, None] + torch.arange(5, 0, -2, device=images.device).view(3, 1, 1)) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(sixths, 4 - sixths).clamp(0, 1)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur (N,3,H,W) images, each by a Gaussian with its own standard deviation (N,) in pixels, reflected at the borders."""
    count, channels, height, width = images.shape
    rows, columns = (_gaussian(kernel_size(side), sigma).repeat_interleave(channels, 0) for side in (height, width))
    planes = images.reshape(1, count * channels, height, width)
    planes = F.pad(planes, (columns.shape[1] // 2,) * 2 + (rows.shape[1] // 2,) * 2, mode="reflect")
    planes = F.conv2d(planes, columns[:, None, None, :], groups=count * channels)
    return F.conv2d(planes, rows[:, None, :, None], groups=count * channels).view(images.shape)


def kernel_size(side: int) -> int:
    """The largest odd number up to a tenth (rounded up) of an image's side."""
    tenth = math.ceil(0.1 * side)
    return tenth - 1 + tenth % 2


def _gaussian(size: int, sigma: Tensor) -> Tensor:
    """(N,size) weights that sum to 1."""
    distance = torch.arange(size, device=sigma.device) - size // 2
    return torch.softmax(-(distance**2) / (2 * sigma[:, None] ** 2), dim=1)
