"""CBST's spatial prior: where in an image each class is found, counted on the source's labels."""

import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from utils.files import replacing

from .errors import DataError
from .matlab import read_variable
from .resizing import resize_label
from .segmentation import SegmentationDataset

# The paper smooths with a 70x70 kernel at a width of 2048 and gives no sigma; a kernel reaches three sigmas to each side.
SIGMA_AT_2048 = 70 / 6
LABELS_A_JOB = 32


class PriorError(DataError):
    """A file that holds no usable prior; the message names it."""


def compute_prior(
    dataset: SegmentationDataset,
    num_classes: int,
    size: tuple[int, int],
    sigma: float | None = None,
    workers: int = 1,
    progress: bool = True,
) -> np.ndarray:
    """How often each class is at each pixel of `size` (W,H), smoothed: (C,H,W) float32, every class with mean 1.

    A scale common to all classes cancels in CBST. A class that no image has gets 1 everywhere: no opinion.

    Args:
        dataset: a labelled `SegmentationDataset`; its labels are resized with the nearest pixel.
        sigma: of the Gaussian in pixels (default: 70 / 6 at a width of 2048, in proportion at others).

    Raises:
        MissingDataError, ReadError: naming the label file.
    """
    sigma = SIGMA_AT_2048 * size[0] / 2048 if sigma is None else sigma
    paths = [record.label for record in dataset.records]
    parts = [paths[i : i + LABELS_A_JOB] for i in range(0, len(paths), LABELS_A_JOB)]
    jobs = [(part, dataset.table, dataset.read_label, num_classes, size) for part in parts]
    counts = np.zeros((num_classes, size[1], size[0]), np.int64)
    with ProcessPoolExecutor(workers) as pool:
        for counted in tqdm(pool.map(_count, jobs), total=len(jobs), unit=f"{LABELS_A_JOB} labels", disable=not progress):
            counts += counted
    return np.stack([_plane(count, sigma) for count in counts])


def _count(job: tuple) -> np.ndarray:
    paths, table, read_label, num_classes, (width, height) = job
    counts = np.zeros((num_classes, height, width), np.uint8)  # a job has fewer labels than 256
    for path in paths:
        label = table[resize_label(torch.from_numpy(read_label(path)), (height, width)).numpy()]
        for c in np.unique(label):
            if c < num_classes:
                counts[c] += label == c
    return counts


def _plane(count: np.ndarray, sigma: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter  # slow to import, and only needed here

    if not count.any():
        return np.ones(count.shape, np.float32)
    smooth = gaussian_filter(count.astype(np.float32), sigma, mode="nearest") if sigma else count.astype(np.float32)
    return smooth / smooth.mean()


def save_prior(path: str, prior: np.ndarray) -> None:
    """Write a prior (C,H,W) as .mat (variable `prior_array`, as the authors' file) or .npz, atomically.

    Raises:
        PriorError: another ending.
    """
    ending = os.path.splitext(path)[1]
    if ending not in (".mat", ".npz"):
        raise PriorError(f"{path}: a prior is written as .mat or .npz")
    with replacing(path) as file:
        if ending == ".mat":
            from scipy.io import savemat

            savemat(file, {"prior_array": prior}, do_compression=True)
        else:
            np.savez_compressed(file, prior_array=prior)


def load_prior(path: str, num_classes: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a prior for `num_classes` classes as (C,H,W) float32 at `size` (W,H; default: its own), with overall mean 1 and
    nothing below 0.

    A prior of another size is resized bilinearly, and a note printed.

    Raises:
        PriorError: no such file or variable, another number of classes, or numbers that are none.
    """
    prior = _read(path)
    if prior.ndim != 3 or len(prior) != num_classes:
        raise PriorError(f"{path}: its prior_array has shape {prior.shape}, not ({num_classes}, height, width)")
    if prior.dtype.kind not in "fiu" or not np.isfinite(prior).all() or not (prior > 0).any():
        raise PriorError(f"{path}: its prior_array holds no positive numbers, or some that are not finite")
    prior = prior.astype(np.float32).clip(0)
    if size is not None and prior.shape[1:] != (size[1], size[0]):
        print(f"note: {path} is resized from {prior.shape[2]}x{prior.shape[1]} to {size[0]}x{size[1]}")
        planes = torch.from_numpy(prior)[None]
        prior = F.interpolate(planes, size=(size[1], size[0]), mode="bilinear", align_corners=False)[0].numpy()
    return prior / prior.mean()


def _read(path: str) -> np.ndarray:
    if not os.path.isfile(path):
        raise PriorError(f"{path}: no such file; scripts/spatial_prior.py makes one from the source's labels, --prior names it")
    try:
        if path.endswith(".npz"):
            with np.load(path, allow_pickle=False) as file:
                return np.asarray(file["prior_array"])  # a damaged entry comes as bytes
        return read_variable(path, "prior_array")
    except KeyError as error:
        raise PriorError(f"{path}: holds no variable prior_array") from error
    except Exception as error:
        raise PriorError(f"{path}: cannot be read as a prior ({type(error).__name__}: {error})") from error
