"""CBST-SP's spatial prior while the target is labelled."""

import argparse
import os

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dataset.catalogue import ClassSet
from dataset.spatial_prior import load_prior


class SpatialPrior:
    """A prior (C,h,w) of mean 1 on the device, handed out at the size of each image."""

    def __init__(self, prior: np.ndarray, device: torch.device | str = "cpu") -> None:
        self.prior = self.resized = torch.from_numpy(np.asarray(prior)).to(device)

    def at(self, size: tuple[int, int]) -> Tensor:
        """(C,H,W) at `size` (H,W), of mean 1 again; the last size is kept, as images mostly have the same."""
        own = tuple(self.prior.shape[1:])
        if size == own:
            return self.prior
        if self.resized.shape[1:] != size:
            print(f"note: the spatial prior is resized from {own[1]}x{own[0]} to {size[1]}x{size[0]}")
            planes = F.interpolate(self.prior[None], size=size, mode="bilinear", align_corners=False)[0]
            self.resized = planes / planes.mean()
        return self.resized


def read_prior(args: argparse.Namespace, classes: ClassSet, device: torch.device | str) -> SpatialPrior:
    """The file of --prior, or the one beside the source data: ours, or the authors'.

    Raises:
        PriorError: there is none, or it is not one for these classes; the message names the file.
    """
    names = (f"spatial_prior_{len(classes)}.mat", "prior_array.mat")
    usual = [os.path.join(args.data_dir, name) for name in names]
    path = args.prior or next((path for path in usual if os.path.exists(path)), usual[0])
    return SpatialPrior(load_prior(path, len(classes)), device)
