"""DeepLab v2's classifier: parallel dilated convolutions whose outputs are added."""

from collections.abc import Sequence

import torch
from torch import nn

from .errors import ModelError

RATES = (6, 12, 18, 24)


class AtrousClassifier(nn.Module):
    """Sum of 3x3 convolutions with the given dilation `rates`, of which the first `branches` take part.

    The originals disagree: AdaptSegNet and MaxSquare return from inside the summing loop, so only two of the four
    branches count, while CLAN, FADA, CRST and ADVENT add all four. Every checkpoint holds four, so four are built;
    those that take no part never get a gradient in the originals and are frozen here.

    Raises:
        ModelError: `branches` is neither 2 nor 4.
    """

    def __init__(self, in_channels: int, num_classes: int, branches: int, rates: Sequence[int] = RATES) -> None:
        super().__init__()
        if branches not in (2, 4):
            raise ModelError(f"aspp_branches must be 2 (AdaptSegNet, MaxSquare) or 4 (CLAN, FADA, CRST), not {branches}")
        self.branches = branches
        convolutions = [nn.Conv2d(in_channels, num_classes, 3, padding=rate, dilation=rate) for rate in rates]
        for convolution in convolutions:
            nn.init.normal_(convolution.weight, 0, 0.01)
        for convolution in convolutions[branches:]:
            convolution.requires_grad_(False)
        self.conv2d_list = nn.ModuleList(convolutions)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N,in_channels,h,w) features to (N,num_classes,h,w) logits."""
        return torch.stack([convolution(x) for convolution in self.conv2d_list[: self.branches]]).sum(0)
