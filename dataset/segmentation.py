"""The data sets: records, read and transformed to uint8 samples."""

import os
import random
from functools import partial

import torch
from torch.utils.data import Dataset

from .classes import label_table
from .lists import find_records
from .reading import ReadError, read_gta5_colours, read_image, read_label, read_synthia_label

# Official GTA5 has a few labels that differ from their image by a few pixels; more than this is another picture.
SIZE_TOLERANCE = 16


def build_dataset(name, root, split, list_file=None, num_classes=19, transform=None, labels=True, city=None):
    """A `SegmentationDataset` of gta5, synthia, cityscapes or crosscity; see `dataset.lists.find_records` for the arguments.

    With `labels=False` label files are neither needed nor opened.

    Raises:
        FileNotFoundError, ValueError: as `find_records`, or labels are asked for where there are none.
    """
    records = find_records(name, root, split, list_file, city)
    if labels and records[0].label is None:
        raise FileNotFoundError(f"{root}: split {split} of {name} has no labels")
    return SegmentationDataset(records, label_table(name, num_classes), transform, labels, label_reader(name, root))


def label_reader(name, root):
    """The function that reads a label file of data set `name`; GTA5's `mapping.mat` in `root` lets it read colours too.

    Raises:
        ReadError: there is a mapping.mat, but it is broken.
    """
    if name == "synthia":
        return read_synthia_label
    mapping = os.path.join(root, "mapping.mat")
    if name == "gta5" and os.path.exists(mapping):
        return partial(read_label, colours=read_gta5_colours(mapping))
    return read_label


class SegmentationDataset(Dataset):
    """Samples as dicts: `image` (3,H,W) uint8 RGB, `label` (H,W) uint8 ids with 255 for ignored, `name`, `path`.

    An item is asked for by its index, or by (index, seed, batch_seed): the seeds of the draws that are its own and of those
    that its whole batch shares.
    """

    def __init__(self, records, table, transform=None, labels=True, read_label=read_label):
        self.records, self.transform, self.labels, self.read_label = records, transform, labels, read_label
        self.table = table

    def __len__(self):
        return len(self.records)

    def __getitem__(self, key):
        index, seed, batch_seed = key if isinstance(key, tuple) else (key, key, key)
        record = self.records[index]
        image = read_image(record.image)
        label = self._read_label(record, image) if self.labels else None
        if self.transform is not None:
            image, label = self.transform(image, label, random.Random(seed), random.Random(batch_seed))
        sample = {"image": image.contiguous(), "name": record.name, "path": record.image}
        if label is not None:
            sample["label"] = torch.from_numpy(self.table[label.numpy()])
        return sample

    def _read_label(self, record, image):
        label = self.read_label(record.label)
        if label.ndim != 2 or label.dtype != torch.uint8:
            raise ReadError(f"{record.label}: not an 8-bit map of ids ({tuple(label.shape)}, {label.dtype})")
        difference = max(abs(a - b) for a, b in zip(label.shape, image.shape[1:], strict=True))
        if difference > SIZE_TOLERANCE:
            sizes = f"{label.shape[1]}x{label.shape[0]} against {image.shape[2]}x{image.shape[1]}"
            raise ReadError(f"{record.label}: its size does not fit {record.image} ({sizes})")
        return label
