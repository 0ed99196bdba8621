"""The network's output for every target image, compact on the disk, and the scores at full size computed from it.

Thresholds need all images before the first label can be written, so the originals store each image's full-resolution
probabilities (160 MB at 2048x1024). Here the network's own low-resolution output is stored (at most 3 MB) and the
full-resolution decision is computed from it again.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
import torch
from numpy.lib.format import write_array
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Subset

from dataset.layouts import Record
from dataset.loader import sequential_loader
from dataset.reading import image_size
from model import upsample
from model.segmenter import Segmenter

from .. import distributed
from ..coarse_prediction import CoarseProbabilities
from ..errors import RunError
from ..files import make_parent, replacing
from ..interpolation import bands, logit_weights
from ..run import NotFiniteError
from .label_folders import progress
from .prior import SpatialPrior


class FullSizeLogits:
    """CRST: logits of the image and of its mirror image; scores are the mean of the probabilities of both at full size."""

    def __init__(self, flip: bool = True) -> None:
        self.passes = 2 if flip else 1

    def maps(self, model: Segmenter, images: Tensor) -> Tensor:
        """Images (1,3,h,w) uint8 to maps (passes,C,h/8,w/8) float32."""
        both = [images, images.flip(-1)][: self.passes]
        logits = torch.cat([model(each)[-1].float() for each in both])
        return logits - logits.amax(1, keepdim=True)  # changes no probability, and makes the rounding on disk finer

    def bands(self, maps: Tensor, size: tuple[int, int], shape: tuple[int, int] | None = None) -> Iterator[Tensor]:
        """Maps to probabilities (C,rows,W) at `size` (H,W), from top to bottom."""
        columns = upsample(maps, (maps.shape[-2], size[1]))
        columns[1:] = columns[1:].flip(-1)
        for logits in bands(columns, logit_weights(maps.shape[-2], size[0])):
            first, *mirrored = (F.softmax(each, dim=0) for each in logits)
            yield first.add_(mirrored[0]).div_(2) if mirrored else first

    def scores(self, maps: Tensor, size: tuple[int, int], shape: tuple[int, int] | None = None) -> Tensor:
        """All of `bands`: (C,H,W)."""
        return torch.cat(list(self.bands(maps, size, shape)), dim=1)


Predictor = FullSizeLogits | CoarseProbabilities


class ScoreMaps:
    """The maps of a predictor in `folder`, `<name>.npz` for the image that is filed under `name`.

    Args:
        prior: multiplies the scores, or None.
        device: where scores are computed.
    """

    def __init__(
        self, folder: str, predictor: Predictor, prior: SpatialPrior | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.folder, self.predictor, self.prior, self.device = folder, predictor, prior, device

    def path(self, name: str) -> str:
        return os.path.join(self.folder, f"{name}.npz")

    def has(self, record: Record) -> bool:
        return os.path.exists(self.path(record.name))

    def write(
        self,
        network: Segmenter,
        images: Subset,
        num_workers: int = 0,
        autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ) -> None:
        """Write the maps of `images`, each process those of its share.

        Raises:
            NotFiniteError: the network's output is not finite.
            RunError: the maps need more space than the disk has.
        """
        os.makedirs(self.folder, exist_ok=True)
        loader = sequential_loader(images, num_workers, distributed.rank(), distributed.world_size())
        for number, batch in enumerate(progress(loader, "scores")):
            with autocast():
                maps = self.predictor.maps(network, batch["image"].to(self.device, non_blocking=True))
            if not maps.isfinite().all():
                raise NotFiniteError(f"{batch['path'][0]}: the network's scores are not finite; try --amp bf16 or off")
            if number == 0 and distributed.is_main():
                print(f"score maps: {check_disk(self.folder, len(images), bytes_of(maps))}")
            save_maps(self.path(batch["name"][0]), maps, batch["image"].shape[-2:])
        distributed.wait_for_all()

    def bands(self, record: Record) -> Iterator[Tensor]:
        """An image's scores at its own size with the prior, (C,rows,W) from top to bottom.

        Raises:
            RunError: the file is damaged; the message names it.
        """
        maps, shape = load_maps(self.path(record.name))
        width, height = image_size(record.image)
        bottom = 0
        for scores in self.predictor.bands(maps.to(self.device), (height, width), shape):
            top, bottom = bottom, bottom + scores.shape[1]
            yield scores if self.prior is None else scores * self.prior.at((height, width))[:, top:bottom]

    def scores(self, record: Record) -> Tensor:
        """All of `bands`: (C,H,W)."""
        return torch.cat(list(self.bands(record)), dim=1)


def save_maps(path: str | os.PathLike[str], maps: Tensor, shape: tuple[int, int]) -> None:
    """Write maps (N,C,h,w) in 3 bytes a number: the upper 24 bits of float32, a relative error of at most 2^-16.

    Probabilities computed from logits up to 26 below their maximum stay within 1e-4. The file is NumPy's .npz; only the upper 8
    bits are compressed, for the others are noise.
    """
    rounded = maps.float().cpu().contiguous().numpy().view(np.uint32) + np.uint32(0x80) >> 8
    make_parent(path)
    with replacing(path, sync=False) as file, ZipFile(file, "w", ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("high.npy", "w") as part:
            write_array(part, (rounded >> 16).astype(np.uint8))
        for name, numbers in (("low.npy", rounded.astype(np.uint16)), ("shape.npy", np.array(shape))):
            with archive.open(ZipInfo(name), "w") as part:
                write_array(part, numbers)


def load_maps(path: str | os.PathLike[str]) -> tuple[Tensor, tuple[int, int]]:
    """Read what `save_maps` wrote: (maps (N,C,h,w) float32, shape (h,w) of the resized image).

    Raises:
        RunError: the file is damaged; the message names it.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            bits = (file["high"].astype(np.uint32) << 24) | (file["low"].astype(np.uint32) << 8)
            height, width = file["shape"].tolist()
    except FileNotFoundError:
        raise
    except Exception as error:
        raise RunError(f"{path}: a damaged map of scores ({error}); remove it and go on with --resume") from error
    return torch.from_numpy(bits.view(np.float32)), (height, width)


def check_disk(directory: str | os.PathLike[str], images: int, bytes_each: int) -> str:
    """Tell how much the maps of `images` images take at most, and refuse if the disk has less.

    Raises:
        RunError: not enough space; the message says how much is needed and free.
    """
    need, free = images * bytes_each, shutil.disk_usage(directory).free
    line = f"{images} images, at most {bytes_each / 1e6:.2f} MB each: {need / 1e9:.2f} GB of {free / 1e9:.1f} GB free"
    if need > free:
        raise RunError(f"{directory}: too little space for the score maps ({line})")
    return line


def bytes_of(maps: Tensor) -> int:
    """The most that a file of `maps` takes."""
    return 3 * maps.numel() + 4096
