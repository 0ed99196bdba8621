"""What self-training (CBST, CRST) does with images: resizing, crops around rare classes, and sets of source and target images.

The transforms are called as those in `dataset.transforms`: `transform(image, label, rng, batch_rng)`.
"""

import random

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import Dataset

from .catalogue import IGNORED
from .reading import read_image
from .resizing import nearest_positions, resize_by, resize_picture
from .segmentation import SegmentationDataset
from .segmentation import label_tensor as read_label

# ImageNet's mean colour: what is 0 after normalisation. CBST's canvas has it cut down to whole numbers, CRST pads with 0.
MEAN_COLOUR = (124, 116, 104)
CANVAS_COLOUR = (123, 116, 103)


class ScaleImage:
    """CRST's resizing for prediction: the image by a factor, bilinear as OpenCV computes it; the label keeps its size."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, image, label, rng, batch_rng):
        return resize_by(image, self.factor), label


class FitLongerSide:
    """CBST's resizing for prediction: the longer side to `length`, Pillow's filter by whether the image grows."""

    def __init__(self, length):
        self.length = length

    def __call__(self, image, label, rng, batch_rng):
        height, width = image.shape[1:]
        factor = self.length / max(height, width)
        size = tuple(self.length if side == max(height, width) else round(side * factor) for side in (height, width))
        return resize_picture(image, size), label


class ScaledCrop:
    """CRST's augmentation: scale in steps of 0.1, crop of (W,H) (with a chance around a rare class), mirror.

    An image that is too small is padded right and below: with the mean colour, and ignored pixels.

    Args:
        scales: (low, high), or None to keep the size.
        rare: ids of the classes to look for; with probability `chance` the crop is centred on a pixel of one of them.
    """

    def __init__(self, size, scales=(0.5, 1.5), mirror=True, rare=(), chance=0.8):
        self.width, self.height = size
        self.scales, self.mirror, self.rare, self.chance = scales, mirror, rare, chance

    def __call__(self, image, label, rng, batch_rng):
        window, label = self.choose(label, rng)
        return self.cut_image(image, window), label

    def choose(self, label, rng):
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

    def _corner(self, label, rng):
        spare = label.shape[0] - self.height, label.shape[1] - self.width
        if self.rare and rng.uniform(0, 1) < self.chance:
            present = [c for c in self.rare if (label == c).any()]
            if present:
                pixels = (label == present[rng.randint(0, len(present) - 1)]).nonzero()
                y, x = pixels[rng.randint(0, len(pixels) - 1)].tolist()
                return min(max(y - self.height // 2, 0), spare[0]), min(max(x - self.width // 2, 0), spare[1])
        return rng.randint(0, spare[0]), rng.randint(0, spare[1])

    def cut_image(self, image, window):
        """The window of a (3,h,w) uint8 image."""
        return self._cut(image, window, torch.tensor(MEAN_COLOUR, dtype=torch.uint8))

    def cut_soft(self, soft, label, window):
        """The window of soft labels (C,h,w), brought to sum 1 again, and 0 where the cut-out `label` is ignored."""
        factor, top, left, mirrored = window
        cut = self._cut(soft, (factor, top, left, mirrored), torch.zeros(len(soft)))
        cut = cut / cut.sum(0).clamp(min=1e-12)
        return cut * (label != IGNORED)

    def _cut(self, image, window, fill):
        factor, top, left, mirrored = window
        sides = zip((top, left), (self.height, self.width), image.shape[1:], strict=True)
        size = [min(corner + side, round(whole * factor)) - corner for corner, side, whole in sides]
        part = resize_by(image, factor, (top, left, *size))
        result = fill[:, None, None].expand(-1, self.height, self.width).clone()
        result[:, : size[0], : size[1]] = part
        return result.flip(-1) if mirrored else result


class CanvasCrop:
    """CBST's augmentation: a square window of the image on a canvas of mean colour, resized to T x T; labels at stride 8.

    Args:
        crop: T, a multiple of 8.
        scales: (low, high) of the drawn size as a share of `origin`.
        origin, max_side: the longer side that sizes are drawn around, and the longest side of the data set's images.
        priority, rare: ids to centre the window on with probability `chance`: those of `priority` that are there, else `rare`.
    """

    def __init__(self, crop, scales, origin, max_side, priority=(), rare=(), chance=0.8):
        self.crop, self.scales, self.origin, self.max_side = crop, scales, origin, max_side
        self.priority, self.rare, self.chance = priority, rare, chance

    def __call__(self, image, label, rng, batch_rng):
        low, high = self.scales
        rate = rng.randint(int(low * self.origin), int(high * self.origin)) / self.max_side
        side, stride = int(self.crop / rate), 8 / rate
        border = max(1, int(stride // 2))
        top, left = self._corner(label, side, stride, border, rng)
        image = self._window(image, top, left, side, torch.tensor(CANVAS_COLOUR, dtype=torch.uint8))
        label = self._window(label[None], top, left, side, torch.tensor([IGNORED], dtype=torch.uint8))[0]
        image = resize_picture(image, (self.crop, self.crop))
        label = np.array(Image.fromarray(label.numpy()).resize((self.crop, self.crop), Image.NEAREST))[4::8, 4::8]
        label = torch.from_numpy(label.copy())
        if rng.randint(0, 1) == 0:
            image, label = image.flip(-1), label.flip(-1)
        return image, label

    def _corner(self, label, side, stride, border, rng):
        """Top and left of the window, relative to the image (the canvas begins `border` pixels before it)."""
        height, width = label.shape
        if rng.random() < self.chance:
            half = side // 2
            inner = label[half : max(half, height - half - 1), half : max(half, width - half - 1)]
            present = [c for c in self.priority if (inner == c).any()] or [c for c in self.rare if (inner == c).any()]
            if present:
                # Whole numbers from the draw, as the original takes them.
                pixels = (inner == present[min(int(rng.uniform(0, len(present))), len(present) - 1)]).nonzero()
                return tuple(pixels[rng.randint(0, len(pixels) - 1)].tolist())
        return tuple(rng.randint(0, int(max(1, stride, border + have - side + 1)) - 1) - border for have in (height, width))

    @staticmethod
    def _window(planes, top, left, side, fill):
        result = fill[:, None, None].expand(-1, side, side).clone()
        height, width = planes.shape[1:]
        y, x = max(0, top), max(0, left)
        part = planes[:, y : min(height, top + side), x : min(width, left + side)]
        result[:, y - top : y - top + part.shape[1], x - left : x - left + part.shape[2]] = part
        return result


class Relabelled:
    """A transform that gets train ids instead of raw ones, because it looks at classes."""

    def __init__(self, transform, table):
        self.transform, self.table = transform, table

    def __call__(self, image, label, rng, batch_rng):
        return self.transform(image, torch.from_numpy(self.table[label.numpy()]), rng, batch_rng)


class PseudoLabelled(Dataset):
    """Target images with pseudo-labels (train ids, 255 ignored), augmented by a transform.

    Args:
        records: with `label` the pseudo-label's file.
        soft: function from a record to its soft labels (C,H,W) float32 of the whole image (LRENT), or None; `transform` must
            be a `ScaledCrop` then.
    """

    def __init__(self, records, transform, soft=None):
        self.records, self.transform, self.soft = records, transform, soft

    def __len__(self):
        return len(self.records)

    def __getitem__(self, key):
        index, seed, batch_seed = key
        record = self.records[index]
        image, label = read_image(record.image), read_label(record.label)
        rng = random.Random(seed)
        sample = {"name": record.name, "path": record.image}
        if self.soft is None:
            sample["image"], sample["label"] = self.transform(image, label, rng, random.Random(batch_seed))
        else:
            window, sample["label"] = self.transform.choose(label, rng)
            sample["image"] = self.transform.cut_image(image, window)
            sample["soft"] = self.transform.cut_soft(self.soft(record), sample["label"], window)
        return {key: value.contiguous() if isinstance(value, torch.Tensor) else value for key, value in sample.items()}


class SourceAndTarget(Dataset):
    """Some images of the source and all pseudo-labelled ones of the target in one set; samples say where they are from.

    Samples have `target` (0 or 1) and, if the target's have `soft` labels, the source's one-hot ones.

    Args:
        source: a `SegmentationDataset`.
        chosen: indices of its images that take part.
        target: a `PseudoLabelled`.
    """

    def __init__(self, source: SegmentationDataset, chosen, target: PseudoLabelled, num_classes):
        self.source, self.chosen, self.target, self.num_classes = source, list(chosen), target, num_classes

    def __len__(self):
        return len(self.chosen) + len(self.target)

    def __getitem__(self, key):
        index, *seeds = key
        if index >= len(self.chosen):
            return {**self.target[(index - len(self.chosen), *seeds)], "target": 1.0}
        sample = self.source[(self.chosen[index], *seeds)]
        if self.target.soft is not None:
            sample["soft"] = one_hot(sample["label"], self.num_classes)
        return {**sample, "target": 0.0}


def one_hot(label, num_classes):
    """(H,W) uint8 ids to (C,H,W) float32, all 0 where ignored."""
    return (label[None] == torch.arange(num_classes, dtype=torch.uint8)[:, None, None]).float()
