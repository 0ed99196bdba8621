"""Input conventions and BatchNorm modes: the two silent choices that decide whether weights give their numbers."""

from typing import NamedTuple

import torch
from torch import nn

from .errors import ModelError


class InputConvention(NamedTuple):
    """How the weights want to see an image: channel order, then (pixel * scale - mean) / std in that order."""

    bgr: bool
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


CONVENTIONS = {
    # Caffe weights: AdaptSegNet, CLAN, MaxSquare, ADVENT.
    "caffe": InputConvention(True, 1.0, (104.00698793, 116.66876762, 122.67891434), (1.0, 1.0, 1.0)),
    # torchvision weights: FADA's ResNet, CBST, CRST.
    "imagenet": InputConvention(False, 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # FADA's VGG16, converted from Caffe with another mean.
    "caffe-vgg": InputConvention(True, 1.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0)),
}

# Stands for 0 where BatchNorm adds nothing to the variance: some versions of PyTorch refuse an eps of 0, and this one changes
# no bit of any variance above 1e-30.
NO_EPS = torch.finfo(torch.float32).tiny

BATCH_NORM_MODES = ("train", "frozen-affine", "frozen-statistics", "frozen")


class Normalize(nn.Module):
    """uint8 RGB images (N,3,H,W) to normalised floats; its constants are not part of the state dict.

    Raises:
        ModelError: unknown input convention.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, convention: str) -> None:
        super().__init__()
        if convention not in CONVENTIONS:
            raise ModelError(f"unknown input convention {convention!r}; known: {', '.join(CONVENTIONS)}")
        self.convention = convention
        chosen = CONVENTIONS[convention]
        self.bgr, self.scale = chosen.bgr, chosen.scale
        self.register_buffer("mean", torch.tensor(chosen.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(chosen.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.bgr:
            images = images.flip(1)
        return (images.to(self.mean.dtype) * self.scale - self.mean) / self.std


def freezes_statistics(mode: str) -> bool:
    """True if BatchNorm mode `mode` normalises with the stored statistics and keeps them."""
    return mode in ("frozen-statistics", "frozen")


def freezes_affine(mode: str) -> bool:
    """True if BatchNorm mode `mode` keeps scale and shift."""
    return mode in ("frozen-affine", "frozen")
