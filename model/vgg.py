"""DeepLab v2 on VGG16 (DeepLab-LargeFOV layout), with AdaptSegNet's state-dict keys."""

import torch
from torch import nn

from .aspp import AtrousClassifier
from .errors import ModelError
from .segmenter import Segmenter

# Channels of the convolutions between max-pools; pool4 and pool5 are left out, so the output stride is 8.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512))
# torchvision counts pool4 (entry 23), so its conv5 layers sit one entry further on.
TORCHVISION_KEYS = {24: 23, 26: 25, 28: 27}


class DeepLabVGG(Segmenter):
    """VGG16 without pool4 and pool5, conv5 dilated by 2, two dilated 3x3 convolutions, one classifier.

    It has neither BatchNorm nor dropout: training and evaluation compute the same. All parameters share one learning
    rate, as in AdaptSegNet. With `heads` "twin" a second classifier, `classifier2`, stands beside the first (for CLAN,
    whose authors published no VGG code).
    """

    head_multiplier = 1

    def __init__(
        self,
        num_classes: int = 19,
        heads: str = "single",
        aspp_branches: int = 2,
        normalization: str = "caffe",
        batch_norm: str = "frozen-affine",
    ) -> None:
        super().__init__(normalization)
        if heads not in ("single", "twin"):
            raise ModelError(f"VGG16 has no classifier on a lower layer: heads must be single or twin, not {heads!r}")
        self.head_names = ("classifier",) if heads == "single" else ("classifier", "classifier2")
        self.default_heads = "last" if heads == "single" else "sum"
        self.aspp_branches = aspp_branches
        layers, channels = [], 3
        for index, stage in enumerate(STAGES):
            for width in stage:
                layers += _convolution(channels, width, dilation=1)
                channels = width
            if index < 3:
                layers.append(nn.MaxPool2d(2))
        for _ in range(3):
            layers += _convolution(channels, 512, dilation=2)
        channels = 1024
        layers += _convolution(512, channels, dilation=4) + _convolution(channels, channels, dilation=4)
        self.features = nn.Sequential(*layers)
        self.feature_channels = channels
        for name in self.head_names:
            setattr(self, name, AtrousClassifier(channels, num_classes, aspp_branches))
        self.set_batch_norm(batch_norm)

    def classify(self, features: torch.Tensor) -> list[torch.Tensor]:
        """What `features` returns to the logits of each classifier."""
        return [head(features) for head in self.heads()]


def _convolution(in_channels: int, out_channels: int, dilation: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)]
