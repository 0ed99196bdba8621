"""Pseudo-labels at any data size: streaming confidence thresholds, compact score maps on disk, labels made from both.

CBST keeps a pixel if its largest p_c / t_c is at least 1, t_c a threshold such that a given portion of the pixels predicted as
class c is kept. Thresholds need all images before the first label can be written, so the originals store each image's
full-resolution probabilities (160 MB at 2048x1024). Here the network's own low-resolution output is stored (at most 3 MB) and
the full-resolution decision is computed from it again.
"""

import os
import shutil

import numpy as np
import torch
from torch.nn import functional as F

from dataset.catalogue import IGNORED
from dataset.resizing import resize_planes
from model import upsample

from .distributed import sum_across_processes, world_size

# Histogram bins are spaced like float32 numbers with 14 bits of mantissa, from 2^-12 to 2^12 (a prior can make scores large).
MANTISSA_BITS = 14
LOWEST_EXPONENT, HIGHEST_EXPONENT = -12, 12
SHIFT = 23 - MANTISSA_BITS
FIRST_BIN = (127 + LOWEST_EXPONENT) << MANTISSA_BITS
BINS = (HIGHEST_EXPONENT - LOWEST_EXPONENT) << MANTISSA_BITS


class ConfidenceHistograms:
    """For each class the confidences of the pixels predicted as it, of any number of images in constant memory (90 MB).

    A threshold read from it is a confidence that occurred, at most a factor 1 + 2^-14 (6e-5) from the exact one; where a bin
    holds one value, which it does for small data, it is the exact one.

    Args:
        every: of each class's pixels in an image, in row-major order, every so many-th counts.
    """

    def __init__(self, num_classes, every=4, device="cpu"):
        self.every = every
        self.counts = torch.zeros(num_classes, BINS, dtype=torch.int64, device=device)
        self.smallest = torch.full((num_classes, BINS), torch.inf, device=device)
        self.pixels = torch.zeros(num_classes, dtype=torch.int64, device=device)

    def add(self, scores):
        """Count an image's scores (C,H,W), probabilities or their product with a prior."""
        confidence, predicted = scores.max(0)
        self.pixels += torch.bincount(predicted.flatten(), minlength=len(self.counts))
        for c in predicted.unique().tolist():
            values = confidence[predicted == c][:: self.every].float().contiguous()
            bins = ((values.view(torch.int32) >> SHIFT) - FIRST_BIN).clamp(0, BINS - 1).long()
            self.counts[c] += torch.bincount(bins, minlength=BINS)
            self.smallest[c].scatter_reduce_(0, bins, values, "amin")

    def reduce(self):
        """The sum over all processes."""
        self.counts, self.pixels = sum_across_processes(self.counts), sum_across_processes(self.pixels)
        if world_size() > 1:
            torch.distributed.all_reduce(self.smallest, torch.distributed.ReduceOp.MIN)
        return self

    def sizes(self):
        """How many confidences were counted for each class, (C) int64 on the CPU."""
        return self.counts.sum(1).cpu()

    def kth_largest(self, k, c=None):
        """The k-th largest confidence (k from 1) of class `c`, or of all classes together."""
        counts, smallest = (self.counts[c], self.smallest[c]) if c is not None else (self.counts.sum(0), self.smallest.amin(0))
        from_top = counts.flip(0).cumsum(0)
        return smallest.flip(0)[int((from_top < k).sum())].item()


def class_thresholds(histograms, portion, extra=0):
    """t_c of CBST: the confidence that `portion` of a class's pixels reach; 1.0 where that is no pixel.

    Args:
        extra: zeros that are counted in each class's list (the MXNet original begins its lists with one).

    Returns (C) float32.
    """
    thresholds = torch.ones(len(histograms.counts))
    for c, size in enumerate(histograms.sizes().tolist()):
        k = int((size + extra) * portion) if size else 0
        if k > 0:
            thresholds[c] = _positive(histograms.kth_largest(k, c) if k <= size else 0.0)
    return thresholds


def global_threshold(histograms, portion, extra=0):
    """One threshold for all classes (ST): the confidence that `portion` of all pixels reach, (C) float32 all equal."""
    size = int(histograms.sizes().sum())
    k = int((size + extra) * portion)
    value = histograms.kth_largest(k) if 0 < k <= size else 0.0
    return torch.full((len(histograms.counts),), _positive(value))


def _positive(threshold):
    # 0 stands for "no threshold" in the originals, which take 1 then.
    return threshold if threshold > 0 else 1.0


def select(scores, thresholds, alpha=None):
    """Pseudo-labels (H,W) uint8 from scores (C,H,W): argmax of p_c / t_c, 255 where that is below 1.

    With `alpha` (LRENT) a pixel is kept where sum_c (p_c / t_c)^(1/alpha) exceeds 1.
    """
    ratio = scores / thresholds.to(scores)[:, None, None]
    best, label = ratio.max(0)
    kept = best >= 1 if alpha is None else (ratio ** (1 / alpha)).sum(0) > 1
    return label.where(kept, label.new_tensor(IGNORED)).to(torch.uint8)


def soft_labels(scores, thresholds, alpha):
    """LRENT's soft labels (C,H,W): (p_c / t_c)^(1/alpha), normalised over the classes."""
    ratio = scores / thresholds.to(scores)[:, None, None]
    # Powers would leave the range of float32 for small alpha.
    return F.softmax(torch.log(ratio.clamp(min=1e-30)) / alpha, dim=0)


# From the network to scores at full size


class FullSizeLogits:
    """CRST: logits of the image and of its mirror image; scores are the mean of the probabilities of both at full size."""

    def __init__(self, flip=True):
        self.passes = 2 if flip else 1

    def maps(self, model, images):
        """Images (1,3,h,w) uint8 to maps (passes,C,h/8,w/8) float32."""
        both = [images, images.flip(-1)][: self.passes]
        logits = torch.cat([model(each)[-1].float() for each in both])
        return logits - logits.amax(1, keepdim=True)  # changes no probability, and makes the rounding on disk finer

    def scores(self, maps, size, shape=None):
        """Maps to probabilities (C,H,W) at `size`."""
        total = 0
        for i, logits in enumerate(maps[:, None]):
            probability = F.softmax(upsample(logits, size), dim=1)[0]
            total = total + (probability.flip(-1) if i else probability)
        return total / len(maps)


class CoarseProbabilities:
    """CBST: probabilities at 1/8 of the input, averaged with the mirror image's, then interpolated with bicubic weights.

    They are neither normalised again nor clipped: overshoot gives scores below 0 and above 1, as in the original.
    """

    def __init__(self, flip=True, steps=1):
        """With `steps` 2 or 4 maps are two or four times as fine: that many passes in each direction, over shifted images."""
        self.flip, self.steps = flip, steps

    def maps(self, model, images):
        """Images (1,3,h,w) uint8 to one map (1,C,steps*ceil(h/8),steps*ceil(w/8))."""
        images, stride = model.normalize(images), 8 // self.steps
        height, width = images.shape[-2:]
        around = F.pad(images, (4, 4, 4, 4))
        rows = []
        for top in range(stride // 2, 8, stride):
            windows = [around[..., top : top + height, left : left + width] for left in range(stride // 2, 8, stride)]
            rows.append(torch.stack([self._probability(model, window) for window in windows], dim=-1).flatten(-2))
        return torch.stack(rows, dim=-2).flatten(-3, -2)

    def _probability(self, model, images):
        """Normalised images (1,3,h,w), padded with 0 to multiples of 8, to (1,C,ceil(h/8),ceil(w/8))."""
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % 8, 0, -height % 8))
        probability = F.softmax(model(padded)[-1].float(), dim=1)
        if self.flip:
            probability = 0.5 * (probability + F.softmax(model(padded.flip(-1))[-1].float(), dim=1).flip(-1))
        return probability

    def scores(self, maps, size, shape):
        """Maps to scores (C,H,W) at `size`; `shape` (h,w) is the resized image's, without the padding."""
        fine = tuple(8 // self.steps * side for side in maps.shape[-2:])
        planes = resize_planes(maps, fine)[..., : shape[0], : shape[1]]
        # Only the heights are compared, as in the original.
        return (planes if shape[0] == size[0] else resize_planes(planes, size))[0]


# Maps on disk


def save_maps(path, maps, shape):
    """Write maps (N,C,h,w) in 3 bytes a number, compressed: the upper 24 bits of float32, a relative error of at most 2^-16.

    Probabilities computed from logits up to 26 below their maximum stay within 1e-4.
    """
    bits = maps.float().cpu().contiguous().numpy().view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x80 >> 8).astype(np.uint32)
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "wb") as file:
        np.savez_compressed(file, high=(rounded >> 16).astype(np.uint8), low=rounded.astype(np.uint16), shape=np.array(shape))
    os.replace(temporary, path)


def load_maps(path):
    """Read what `save_maps` wrote: (maps (N,C,h,w) float32, shape (h,w) of the resized image).

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            bits = (file["high"].astype(np.uint32) << 24) | (file["low"].astype(np.uint32) << 8)
            shape = tuple(file["shape"].tolist())
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: a damaged map of scores ({error}); remove it and go on with --resume") from error
    return torch.from_numpy(bits.view(np.float32)), shape


def check_disk(directory, images, bytes_each):
    """Tell how much the maps of `images` images take at most, and refuse if the disk has less.

    Raises:
        OSError: not enough space; the message says how much is needed and free.
    """
    need, free = images * bytes_each, shutil.disk_usage(directory).free
    line = f"{images} images, at most {bytes_each / 1e6:.2f} MB each: {need / 1e9:.2f} GB of {free / 1e9:.1f} GB free"
    if need > free:
        raise OSError(f"{directory}: too little space for the score maps ({line})")
    return line


def bytes_of(maps):
    """The most that a file of `maps` takes."""
    return 3 * maps.numel() + 4096
