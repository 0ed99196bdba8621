"""Images made of two, and images with holes: ClassMix (Olsson et al., 2007.07936) and masking by blocks (Hoyer et al., CVPR
2023, 2212.01322, section 3.2). Everything happens on the device for the whole batch, and never waits for it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dataset.catalogue import IGNORED

from .distributed import rank, world_size

IDS = 256  # of uint8 labels


def uniform(images: int, *shape: int, device: torch.device) -> Tensor:
    """(images, *shape) draws from [0, 1) for this process's share of a batch.

    The draws of all processes are made in each, so that together they draw what one process with the whole batch would. They
    come from the device's own generator, which a run saves.
    """
    return torch.rand(images * world_size(), *shape, device=device)[rank() * images :][:images]


def draw_classes(label: Tensor, draws: Tensor, with_ignored: bool = True) -> Tensor:
    """(N,256) bool: half of the classes in each image, rounded up.

    Args:
        label: (N,H,W) uint8 ids.
        draws: (N,256) from [0, 1): the classes with the largest are drawn.
        with_ignored: ignored pixels are a class too, as published; False: at least one class with a name is drawn, if any.
    """
    present = torch.zeros_like(draws).scatter_(1, label.flatten(1).long(), 1.0)
    if not with_ignored:
        present[:, IGNORED] = 0
    half = torch.ceil(present.sum(1, keepdim=True) / 2)
    place = (draws + present).argsort(1, descending=True).argsort(1)  # who is present stands before all others
    return place < half


def class_mask(label: Tensor, chosen: Tensor) -> Tensor:
    """(N,H,W) bool: the pixels of (N,H,W) uint8 labels whose class is among the `chosen`, (N,256) bool."""
    return chosen.gather(1, label.flatten(1).long()).view(label.shape)


def block_mask(draws: Tensor, size: tuple[int, int], ratio: float) -> Tensor:
    """(N,1,H,W) bool, false where blocks are hidden.

    Args:
        draws: (N,1,rows,columns) from [0, 1), one for each block, see `blocks`; those up to `ratio` are hidden.
        size: (H,W).
    """
    return F.interpolate((draws > ratio).float(), size=size) > 0.5


def blocks(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(rows, columns) of blocks with about this side in an image of (H,W), at least one of each."""
    return max(1, round(size[0] / side)), max(1, round(size[1] / side))
