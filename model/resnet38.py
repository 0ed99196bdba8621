"""ResNet-38 (variant A1 of Wu et al., "Wider or Deeper", 1611.10080) with output stride 8: CBST's network."""

from typing import Any

import torch
from torch import nn

from .normalization import BatchNorm
from .segmenter import Segmenter

EPS = 1.001e-5

# Name, channels and kernels of the convolutions, stride of the first, dilation of each, dropout before the last. Blocks whose
# name ends in "a" change the number of channels, and have a convolution in their shortcut.
BLOCKS: list[tuple[str, tuple[int, ...], tuple[int, ...], int, tuple[int, ...], float]] = [
    ("2a", (128, 128), (3, 3), 2, (1, 1), 0.0),
    *((f"2b{i}", (128, 128), (3, 3), 1, (1, 1), 0.0) for i in (1, 2)),
    ("3a", (256, 256), (3, 3), 2, (1, 1), 0.0),
    *((f"3b{i}", (256, 256), (3, 3), 1, (1, 1), 0.0) for i in (1, 2)),
    ("4a", (512, 512), (3, 3), 2, (1, 1), 0.0),
    *((f"4b{i}", (512, 512), (3, 3), 1, (1, 1), 0.0) for i in range(1, 6)),
    ("5a", (512, 1024), (3, 3), 1, (1, 2), 0.0),
    *((f"5b{i}", (512, 1024), (3, 3), 1, (2, 2), 0.0) for i in (1, 2)),
    ("6a", (512, 1024, 2048), (1, 3, 1), 1, (1, 4, 1), 0.3),
    ("7a", (1024, 2048, 4096), (1, 3, 1), 1, (1, 4, 1), 0.5),
]
BRANCHES = ("branch2a", "branch2b1", "branch2b2")


class Block(nn.Module):
    """Pre-activation residual block: norm, ReLU, convolution, two or three times; its parts are named by their branch."""

    def __init__(
        self,
        in_channels: int,
        widths: tuple[int, ...],
        kernels: tuple[int, ...],
        stride: int,
        dilations: tuple[int, ...],
        dropout: float,
        projects: bool,
    ) -> None:
        super().__init__()
        self.norms, self.convolutions = nn.ModuleDict(), nn.ModuleDict()
        self.projection = nn.Conv2d(in_channels, widths[-1], 1, stride, bias=False) if projects else None
        self.dropout = nn.Dropout(dropout) if dropout else None
        for i, (branch, width, kernel, dilation) in enumerate(zip(BRANCHES, widths, kernels, dilations, strict=False)):
            self.norms[branch] = BatchNorm(in_channels, eps=EPS)
            padding = dilation if kernel == 3 else 0
            step = stride if i == 0 else 1
            self.convolutions[branch] = nn.Conv2d(in_channels, width, kernel, step, padding, dilation, bias=False)
            in_channels = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut, last = x, list(self.convolutions)[-1]
        for branch, convolution in self.convolutions.items():
            y = torch.relu(self.norms[branch](x))
            if branch == "branch2a" and self.projection is not None:
                shortcut = self.projection(y)
            if branch == last and self.dropout is not None:
                y = self.dropout(y)
            x = convolution(y)
        return shortcut + x


class ResNet38(Segmenter):
    """17 pre-activation blocks without pooling, a hidden convolution, a classifier; logits at ceil(side / 8).

    State-dict keys are MXNet's names grouped by module; `checkpoint_formats` translates.
    """

    head_names = ("classifier",)
    head_multiplier = 1

    def __init__(self, num_classes: int = 19, normalization: str = "imagenet", batch_norm: str = "frozen-statistics") -> None:
        super().__init__(normalization)
        self.conv1a = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.blocks, channels = nn.ModuleDict(), 64
        for name, widths, kernels, stride, dilations, dropout in BLOCKS:
            self.blocks[name] = Block(channels, widths, kernels, stride, dilations, dropout, projects=name.endswith("a"))
            channels = widths[-1]
        self.bn7 = BatchNorm(channels, eps=EPS)
        self.conv6a = nn.Conv2d(channels, 512, 3, padding=12, dilation=12)
        self.classifier = nn.Conv2d(512, num_classes, 3, padding=12, dilation=12)
        self.feature_channels = 512
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.set_batch_norm(batch_norm)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised images to what the classifier sees, (N,512,ceil(H/8),ceil(W/8))."""
        x = self.conv1a(x)
        for block in self.blocks.values():
            x = block(x)
        return torch.relu(self.conv6a(torch.relu(self.bn7(x))))

    def classify(self, features: torch.Tensor) -> list[torch.Tensor]:
        return [self.classifier(features)]

    def parameter_groups(self, head_multiplier: float | None = None) -> list[dict[str, Any]]:
        """As MXNet's optimizer: biases and the norms' shifts at twice the learning rate and without weight decay."""
        weights = [value for name, value in self.named_parameters() if value.requires_grad and name.endswith("weight")]
        biases = [value for name, value in self.named_parameters() if value.requires_grad and name.endswith("bias")]
        groups = [{"params": weights, "lr_multiplier": 1, "visits": 1}]
        return groups + [{"params": biases, "lr_multiplier": 2, "weight_decay": 0.0, "visits": 1}]
