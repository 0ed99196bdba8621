"""DeepLab v2 on a dilated ResNet (arXiv 1606.00915), with state-dict keys as in the originals."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .aspp import RATES, AtrousClassifier
from .errors import ModelError
from .normalization import NO_EPS, BatchNorm
from .segmenter import Segmenter

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
HEADS = ("single", "multi", "twin")
STYLES = ("caffe", "torchvision")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, style: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = BatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = BatchNorm(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut; `style` says which convolution carries the stride."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, style: str) -> None:
        super().__init__()
        first_stride, middle_stride = (stride, 1) if style == "caffe" else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, width, 1, first_stride, bias=False)
        self.bn1 = BatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, middle_stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = BatchNorm(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = BatchNorm(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


class DeepLabResNet(Segmenter):
    """DeepLab v2 with a ResNet trunk of output stride 8.

    Args:
        depth: 18, 50 or 101.
        heads: "single" (`layer5` on layer 4), "multi" (`layer5` on layer 3, `layer6` on layer 4: AdaptSegNet,
            MaxSquare) or "twin" (`layer5` and `layer6` both on layer 4: CLAN).
        aspp_branches: how many of a classifier's four branches are added, 2 or 4; see `AtrousClassifier`.
        style: "caffe" (stride in the first 1x1, ceil-mode pooling, one dilation for a whole layer) or "torchvision"
            (stride in the 3x3, floor-mode pooling, a layer's first block keeps the previous dilation).
        width: channels of the stem (64 in every published network).
        norm_eps: what BatchNorm adds to the variance; FADA's frozen norms add nothing.

    Raises:
        ModelError: a value that is not among those named here.
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module
    layer5: nn.Module
    layer6: nn.Module

    def __init__(
        self,
        num_classes: int = 19,
        depth: int = 101,
        heads: str = "multi",
        aspp_branches: int = 2,
        style: str = "caffe",
        width: int = 64,
        aspp_rates: Sequence[int] = RATES,
        normalization: str = "caffe",
        batch_norm: str = "frozen-affine",
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__(normalization)
        _check_choice("heads", heads, HEADS)
        _check_choice("style", style, STYLES)
        _check_choice("depth", depth, tuple(BLOCKS))
        block = BasicBlock if depth == 18 else Bottleneck
        self.head_layout, self.style, self.aspp_branches = heads, style, aspp_branches
        self.default_heads = "sum" if heads == "twin" else "last"
        self.head_names = ("layer5",) if heads == "single" else ("layer5", "layer6")

        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = BatchNorm(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=style == "caffe")
        channels = width
        for index, (blocks, stride, dilation) in enumerate(zip(BLOCKS[depth], (1, 2, 1, 1), (1, 1, 2, 4), strict=True)):
            first_dilation = dilation if style == "caffe" else max(1, dilation // 2)
            layer = _layer(block, channels, width << index, blocks, stride, dilation, first_dilation, style)
            setattr(self, f"layer{index + 1}", layer)
            channels = (width << index) * block.expansion
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.01)
            elif isinstance(module, BatchNorm):
                module.eps = max(norm_eps, NO_EPS)
        self.feature_channels = channels
        for name in self.head_names:
            low = heads == "multi" and name == "layer5"
            setattr(self, name, AtrousClassifier(channels // 2 if low else channels, num_classes, aspp_branches, aspp_rates))
        self.set_batch_norm(batch_norm)

    def features(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised images to the features of layer 3 and layer 4, both at 1/8 of the input size."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        low = self.layer3(self.layer2(self.layer1(x)))
        return low, self.layer4(low)

    def classify(self, features: tuple[torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
        """What `features` returns to the logits of each classifier."""
        low, high = features
        if self.head_layout == "single":
            return [self.layer5(high)]
        return [self.layer5(low if self.head_layout == "multi" else high), self.layer6(high)]

    def freeze_stem_norm(self) -> None:
        self.bn1.requires_grad_(False)

    def times_listed(self, name: str) -> int:
        # The originals walk over all sub-modules and list each one's parameters recursively, so a tensor stands in the
        # list once per module that encloses it: `conv1.weight` 1, `layer1.0.conv1.weight` 3, `...downsample.0.weight` 4.
        return name.count(".")


def _layer(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    width: int,
    blocks: int,
    stride: int,
    dilation: int,
    first_dilation: int,
    style: str,
) -> nn.Sequential:
    first = block(in_channels, width, stride, first_dilation, style)
    out_channels = width * block.expansion
    if stride != 1 or in_channels != out_channels:
        projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        first.downsample = nn.Sequential(projection, BatchNorm(out_channels))
    rest = [block(out_channels, width, 1, dilation, style) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def _check_choice(argument: str, value: Any, choices: Sequence[Any]) -> None:
    if value not in choices:
        raise ModelError(f"{argument} must be one of {', '.join(map(str, choices))}, not {value!r}")
