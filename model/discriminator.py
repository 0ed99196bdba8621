"""Domain discriminators: on class probabilities (AdaptSegNet, CLAN) and on features (FADA)."""

import torch
from torch import nn


class OutputDiscriminator(nn.Module):
    """AdaptSegNet's (section 3.2 of its paper), also used by CLAN.

    Five 4x4 convolutions of stride 2: class probabilities (N,C,H,W) to domain logits (N,1,H/32,W/32).

    Each side is halved five times and rounded down, so inputs must be at least 32 pixels on each side.
    """

    def __init__(self, num_classes: int = 19, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_classes, width, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1)
        self.conv4 = nn.Conv2d(4 * width, 8 * width, 4, stride=2, padding=1)
        self.classifier = nn.Conv2d(8 * width, 1, 4, stride=2, padding=1)
        self.leaky_relu = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = self.leaky_relu(convolution(x))
        return self.classifier(x)


class FeatureDiscriminator(nn.Module):
    """FADA's: features (N,in_channels,h,w) to logits (N,2C,h,w) over (domain, class).

    Three 3x3 convolutions; the first C channels mean "source, class k", the others "target, class k".
    """

    def __init__(self, in_channels: int, num_classes: int = 19, width: int = 256) -> None:
        super().__init__()
        self.D = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, width // 2, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.cls1 = nn.Conv2d(width // 2, num_classes, 3, padding=1)
        self.cls2 = nn.Conv2d(width // 2, num_classes, 3, padding=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.D(features)
        return torch.cat((self.cls1(hidden), self.cls2(hidden)), dim=1)
