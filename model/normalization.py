"""Input conventions and BatchNorm modes: the two silent choices that decide whether weights give their numbers."""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

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

    Args:
        convention: a name in CONVENTIONS, or the values of a library's network.

    Raises:
        ModelError: unknown input convention.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, convention: str | InputConvention) -> None:
        super().__init__()
        if isinstance(convention, str):
            if convention not in CONVENTIONS:
                raise ModelError(f"unknown input convention {convention!r}; known: {', '.join(CONVENTIONS)}")
            self.convention, chosen = convention, CONVENTIONS[convention]
        else:
            names = [name for name, values in CONVENTIONS.items() if values == convention]
            self.convention, chosen = names[0] if names else f"mean {convention.mean}, std {convention.std}", convention
        self.bgr, self.scale = chosen.bgr, chosen.scale
        self.register_buffer("mean", torch.tensor(chosen.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(chosen.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.bgr:
            images = images.flip(1)
        return (images.to(self.mean.dtype) * self.scale - self.mean) / self.std


class BatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with the same state dict and numbers, lighter in two ways.

    While nothing of it is learnt, it keeps nothing of its input for the backward pass. And it leaves the counting of batches to
    the network (`Segmenter.forward`), which counts for all its norms in one launch.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    zeros: torch.Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps)
        self.register_buffer("zeros", torch.zeros(channels), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        statistics = self.running_mean, self.running_var
        if self.training or self.weight.requires_grad or self.bias.requires_grad:
            # Without momentum the statistics are the averages over all batches so far.
            momentum = 1 / max(float(self.num_batches_tracked), 1) if self.momentum is None else self.momentum
            return F.batch_norm(x, *statistics, self.weight, self.bias, self.training, momentum, self.eps)
        return _FrozenBatchNorm.apply(x, *statistics, self.weight, self.bias, self.zeros, self.eps)


class _FrozenBatchNorm(torch.autograd.Function):
    """Scale and shift by constants. PyTorch's own would keep x for the gradients of weight and bias, which nobody asks for."""

    @staticmethod
    def forward(
        x: torch.Tensor,
        mean: torch.Tensor,
        variance: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        zeros: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
        _, _, variance, weight, _, zeros, ctx.eps = inputs
        ctx.save_for_backward(variance, weight, zeros)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        variance, weight, zeros = ctx.saved_tensors
        # The scale again, without the shift; unlike a product it takes bf16 gradients and fp32 constants in one pass.
        return F.batch_norm(gradient, zeros, variance, weight, None, eps=ctx.eps), None, None, None, None, None, None


def freezes_statistics(mode: str) -> bool:
    """True if BatchNorm mode `mode` normalises with the stored statistics and keeps them."""
    return mode in ("frozen-statistics", "frozen")


def freezes_affine(mode: str) -> bool:
    """True if BatchNorm mode `mode` keeps scale and shift."""
    return mode in ("frozen-affine", "frozen")
