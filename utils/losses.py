"""Losses that several methods share."""

from torch import Tensor
from torch.nn import functional as F

from dataset.catalogue import IGNORED

from .distributed import sum_across_processes, world_size


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean cross entropy over the labelled pixels of the global batch.

    Args:
        logits: (N,C,H,W).
        label: (N,H,W) train ids of any integer type, 255 for ignored.

    Without any labelled pixel the loss is 0 with zero gradients (the originals log nan there, with zero gradients too).
    With several processes the mean is over the pixels of all of them, as if one process had the whole batch.
    """
    pixels = F.cross_entropy(logits, label.long(), ignore_index=IGNORED, reduction="none")
    return mean_over_labelled(pixels, label != IGNORED)


def mean_over_labelled(pixels: Tensor, labelled: Tensor) -> Tensor:
    """The mean of (N,H,W) losses over the pixels where `labelled` is true, of all processes together; 0 if there are none."""
    count = sum_across_processes(labelled.sum())
    return (pixels * labelled).sum() * world_size() / count.clamp(min=1)
